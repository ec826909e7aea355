"""How many real tokens a second does training reach, beside the Hugging Face Trainer's on the same rows?

    python benchmarks/trainer_comparison.py --data FOLDER          SST-2 on two CPU ranks, SmolLM2-135M
    python benchmarks/trainer_comparison.py --model tiny --steps 8 --warm-up 2 --repeats 1  checks it

Sides, each in fresh processes, in turn: ``packed`` and ``filled`` are this project's loop with and without
packing; ``random`` and ``grouped`` are the Trainer of transformers with its default order of rows and with
``train_sampling_strategy=group_by_length``. All have the same prepared rows (tokens and labels), the same
base and adapters, the same DeepSpeed JSON, rows a step, learning rate and clipping, and one thread for each
of the ranks. The Trainer's ranks have the heap that its users have, not that of ``training/heap.py``. Tokens
are those of rows, padding left out; seconds are those between the ends of steps, from the ``--warm-up``-th to
the last, everything included. Sides are compared repeat by repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from made_rows import LENGTHS, with_rows
from rank_processes import CPU, PLAIN_HEAP, median_ratio, medians, run_ranks

from rankdrift import files

HERE = Path(__file__).resolve().parent
SIDES = ("packed", "filled", "random", "grouped")
OWN = ("packed", "filled")
METHODS = ("lora", "full")
RUN = f"sys.path.insert(0, {str(HERE)!r}); import trainer_comparison; trainer_comparison.main()"
RATE = 1e-4


def planned(arguments: argparse.Namespace, output: Path, method: str, packing: str) -> Any:
    """Return the set-up of a run: rows, base, DeepSpeed's configuration."""
    from rankdrift.layout import StudyLayout
    from rankdrift.models.base import config_of
    from rankdrift.spec import apply_overrides, parse_spec
    from rankdrift.training import collectives, setup

    rows = arguments.micro_batch * collectives.world_size()
    overrides = [f"output={output}", f"model.name={arguments.model}", f"method.name={method}"]
    overrides += [f"data.tasks=[{'sst2' if arguments.data else 'topic'}]", "data.validation_limit=8"]
    overrides += [f"data.root={arguments.data}"] if arguments.data else ["data.max_length=256"]
    overrides += [f"data.train_limit={rows * arguments.steps}", f"training.steps={arguments.steps}"]
    overrides += [f"training.global_batch={rows}", f"training.micro_batch={arguments.micro_batch}"]
    overrides += [f"training.learning_rate={RATE}", "training.schedule=constant", "training.warmup_steps=0"]
    overrides += ["training.probe_every=0", f"training.packing={packing}"]
    overrides += [f"method.rank={arguments.rank}"] if method == "lora" else []
    spec = parse_spec(apply_overrides({}, overrides))
    plan = setup.set_up(spec, StudyLayout(spec.study_root).run(spec.run_name), arguments.config)
    if arguments.lengths is None:
        return plan
    vocabulary = config_of(plan.base).vocab_size
    return with_rows(plan, arguments.lengths, arguments.longest, rows * arguments.steps, vocabulary)


def own_loop(arguments: argparse.Namespace, output: Path, method: str, packing: str) -> dict[str, Any]:
    """Train by this project's loop; return the ends of steps and the tokens of each, over all ranks."""
    from rankdrift.training import engine, run, trainer

    plan = planned(arguments, output, method, packing)
    loop = trainer.Trainer(plan, engine.Engine(run.prepared_model(plan), plan.spec.training, plan.config))
    ends, tokens, losses = [], [], []
    for step in range(1, arguments.steps + 1):
        losses.append(loop.train_step(step).values["loss"])
        ends.append(time.perf_counter())
        tokens.append(int(plan.data.lengths[plan.data.order.rows(step - 1)].sum()))
    return {"ends": ends, "tokens": tokens, "losses": losses}


def their_loop(arguments: argparse.Namespace, output: Path, method: str, sampling: str) -> dict[str, Any]:
    """Train by the Trainer on the same rows; return the ends of steps and this rank's tokens of each."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from rankdrift.training import run

    plan = planned(arguments, output, method, "off")
    table = plan.data.train
    rows = [
        {"input_ids": ids.tolist(), "labels": [t if c else -100 for t, c in zip(ids, carries, strict=True)]}
        for ids, carries in (
            (row.input_ids, row.carries_loss) for row in (table[n] for n in range(len(table)))
        )
    ]
    seen: dict[str, list[Any]] = {"ends": [], "tokens": [], "losses": []}
    counted: list[int] = []

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        counted.append(sum(len(row["input_ids"]) for row in batch))
        fill = {"input_ids": plan.data.pad_id, "labels": -100}
        made = {
            key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in batch])
            for key, value in fill.items()
        }
        own = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
        return {**made, "attention_mask": torch.tensor(own)}

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["ends"].append(time.perf_counter())

    base = json.loads(arguments.config.read_text())
    automatic = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    automatic |= {"gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    settings = TrainingArguments(
        output_dir=str(output),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.micro_batch,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=plan.spec.training.clip,
        train_sampling_strategy=sampling,
        deepspeed={**base, **automatic, "zero_allow_untested_optimizer": True},
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=arguments.steps,
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(
        run.prepared_model(plan), settings, data_collator=collate, train_dataset=rows, callbacks=[Ends()]
    ).train()
    seen["tokens"] = counted[: arguments.steps]  # a batch more may have been collated ahead
    return seen


def run_rank(arguments: argparse.Namespace) -> None:
    """Be one rank of a side, and write what it saw."""
    from rankdrift.training import collectives

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output, collectives.process_group():
        if arguments.side in OWN:
            packing = {"packed": "on", "filled": "off"}[arguments.side]
            found = own_loop(arguments, Path(output), arguments.method, packing)
        else:
            sampling = {"random": "random", "grouped": "group_by_length"}[arguments.side]
            found = their_loop(arguments, Path(output), arguments.method, sampling)
    found["whole"] = time.perf_counter() - began
    files.write_json(arguments.seen / f"{os.environ['RANK']}.json", found)


def run_side(arguments: argparse.Namespace, method: str, side: str) -> dict[str, float]:
    """Train on all ranks; return real tokens a second and the seconds of the whole, start included."""
    with tempfile.TemporaryDirectory() as seen:
        given = ["--side", side, "--method", method, "--seen", seen]
        for name in ("model", "steps", "config", "data", "micro_batch", "rank", "lengths", "longest"):
            value = getattr(arguments, name)
            given += [f"--{name.replace('_', '-')}", str(value)] if value else []
        theirs = side not in OWN
        command = ["-c", PLAIN_HEAP + RUN, *given] if theirs else [__file__, *given]
        began = time.perf_counter()
        run_ranks(
            command, arguments.ranks, arguments.port, {} if arguments.gpu else {"OMP_NUM_THREADS": 1, **CPU}
        )
        whole = time.perf_counter() - began
        told = [files.read_json(Path(seen) / f"{rank}.json") for rank in range(arguments.ranks)]
    # the Trainer's ranks count their own rows, this project's count those of all
    counted = told if theirs else told[:1]
    tokens = sum(sum(rank["tokens"][arguments.warm_up :]) for rank in counted)
    seconds = told[0]["ends"][-1] - told[0]["ends"][arguments.warm_up - 1]
    of_a_step = seconds / (arguments.steps - arguments.warm_up)
    return {"tokens_per_second": tokens / seconds, "seconds_a_step": of_a_step, "whole_seconds": whole}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all sides in turn; return what each gave, medians, and ratios of sides of one repeat."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        m: {s: [] for s in arguments.sides} for m in arguments.methods
    }
    for repeat in range(arguments.repeats):
        for method in arguments.methods:
            for side in arguments.sides:
                found = run_side(arguments, method, side)
                runs[method][side].append(found)
                said = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                print(f"{repeat + 1}/{arguments.repeats} {method} {side}: {said}", flush=True)
    ratios = {
        method: {
            f"packed / {side}": median_ratio(sides["packed"], sides[side], "tokens_per_second")
            for side in arguments.sides[1:]
        }
        for method, sides in runs.items()
    }
    settings = {
        name: getattr(arguments, name)
        for name in ("steps", "warm_up", "ranks", "repeats", "gpu", "micro_batch", "rank")
    }
    made = arguments.lengths and f"random, {arguments.lengths}, at most {arguments.longest} tokens"
    settings |= {"rows": made or ("sst2" if arguments.data else "topic"), "config": arguments.config.name}
    settings["model"] = Path(arguments.model).name
    return {
        "settings": settings,
        "ratios": ratios,
        "medians": {m: {s: medians(found) for s, found in sides.items()} for m, sides in runs.items()},
        "runs": runs,
        "environment": files.environment(),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with SST-2; without it a built-in task")
    parser.add_argument("--lengths", choices=LENGTHS, help="random rows that are so long instead")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest of these")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows of a rank, a step and a pass")
    parser.add_argument("--rank", type=int, default=8, help="LoRA's")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--warm-up", type=int, default=4, help="first steps that are not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES[1:], default=list(SIDES[1:]), help="beside packed"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--config", type=Path, default=HERE.parent / "ds_configs" / "zero2.json")
    parser.add_argument("--gpu", action="store_true", help="leave the choice of the device to DeepSpeed")
    parser.add_argument("--port", type=int, default=29741)
    parser.add_argument("--out", type=Path, help="JSON of the figures")
    for hidden in ("--side", "--method"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seen", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_rank(arguments)
        return
    arguments.sides = [SIDES[0], *arguments.sides]
    found = compare(arguments)
    print(json.dumps({"ratios": found["ratios"], "medians": found["medians"]}, indent=2))
    if arguments.out:
        files.write_json(arguments.out, found)


if __name__ == "__main__":
    main()
