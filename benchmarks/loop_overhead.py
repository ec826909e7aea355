"""What does the loop cost over a bare DeepSpeed loop on the same batches? Do more rows slow it down?

    python benchmarks/loop_overhead.py --data FOLDER

On one engine a step of the bare loop (batches made before, the model, torch's cross-entropy, ``backward``,
``step``) and one of the whole loop (with its callbacks, but without evaluation, saves and probes) are made in
turn, on the same rows. Compared is each with the one beside it. Then the tiny model is trained on few and on
a million prepared rows like those of SST-2, in turn: real tokens a second, and the seconds from the start of
a rank to its first step.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rank_processes import CPU, median_ratio, medians, run_ranks

from rankdrift import files

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "ds_configs" / "zero2.json"
MICRO_BATCH, WARM_UP = 8, 6
SIZES = (1_000, 1_000_000)


def loop_of(output: Path, model: str, root: Path, steps: int, limit: int | None) -> Any:
    """Return a trainer of SST-2's rows that has begun."""
    from rankdrift.layout import StudyLayout
    from rankdrift.spec import apply_overrides, parse_spec
    from rankdrift.training import collectives, engine, journal, run, setup, trainer
    from rankdrift.training.callbacks.accounting import Accounting
    from rankdrift.training.callbacks.recording import Recording
    from rankdrift.training.callbacks.requests import Asked
    from rankdrift.training.callbacks.utilisation import Utilisation
    from rankdrift.training.stop_requests import Requests

    given = [f"output={output}", f"model.name={model}", "method.name=full", "data.tasks=[sst2]"]
    given += [f"data.root={root}", f"data.train_limit={limit or 'null'}", "data.validation_limit=8"]
    given += [f"training.steps={steps}", "training.probe_every=0", "training.packing=on"]
    given += [f"training.global_batch={MICRO_BATCH * collectives.world_size()}"]
    given += [f"training.micro_batch={MICRO_BATCH}"]
    spec = parse_spec(apply_overrides({}, given))
    plan = setup.set_up(spec, StudyLayout(spec.study_root).run(spec.run_name), CONFIG)
    under = engine.Engine(run.prepared_model(plan), spec.training, plan.config)
    plan.run.root.mkdir(parents=True, exist_ok=True)
    log = journal.Journal(plan.run, steps, 0) if collectives.rank() == 0 else None
    callbacks = (Asked(Requests()), Utilisation(), Recording(), Accounting())
    loop = trainer.Trainer(plan, under, callbacks, 0, log)
    for callback in callbacks:
        callback.at_start(loop)
    return loop


def whole_step(loop: Any, step: int) -> float:
    """Train one step as the loop does; return the tokens a second that it says."""
    done = loop.train_step(step)
    for callback in loop.callbacks:
        callback.after_step(loop, done)
    return float(done.speed["tokens_per_second"])


def bare_step(engine: Any, batch: dict[str, Any], targets: Any, total: int, ranks: int) -> None:
    """Train one step as a script of one's own would."""
    from torch.nn.functional import cross_entropy

    logits = engine(**batch).logits[0]
    loss = cross_entropy(logits, targets, reduction="sum") * ranks / total
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(loss, scale_wrt_gas=False)
    engine.step()


def overhead(arguments: argparse.Namespace, output: Path) -> dict[str, float]:
    """Return the median seconds of either loop's steps, and the median of their ratios, pair by pair."""
    from rankdrift.data.batches import packed
    from rankdrift.models.packing import packed_inputs
    from rankdrift.training import collectives

    loop = loop_of(output, arguments.model, arguments.root, arguments.steps, None)
    loop.engine.deepspeed.train()
    seconds: dict[str, list[float]] = {"bare": [], "whole": []}
    for step in range(1, arguments.steps + 1):
        (part,) = loop.micro_batches(step)
        made, total = packed(part), loop.targets(step)
        batch = {"input_ids": made.input_ids, **packed_inputs(made.lengths)}
        batch["logits_to_keep"] = made.predicting

        def bare(batch: Any = batch, targets: Any = made.targets, total: int = total) -> None:
            bare_step(loop.engine.deepspeed, batch, targets, total, collectives.world_size())

        sides = {"bare": bare, "whole": functools.partial(whole_step, loop, step)}
        for name in sorted(sides, reverse=step % 2 == 0):
            collectives.barrier()
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    kept = {name: found[WARM_UP:] for name, found in seconds.items()}
    ratios = [whole / bare for whole, bare in zip(kept["whole"], kept["bare"], strict=True)]
    return {
        **{f"{name}_seconds": statistics.median(found) for name, found in kept.items()},
        "whole_to_bare": statistics.median(ratios),
        "whole_to_bare_of_sums": sum(kept["whole"]) / sum(kept["bare"]),
    }


def growth(arguments: argparse.Namespace, output: Path, began: float) -> dict[str, float]:
    """Return real tokens a second on however many rows, and the seconds of the start."""
    loop = loop_of(output, arguments.model, arguments.root, arguments.steps, None)
    started = time.perf_counter() - began
    speeds = [whole_step(loop, step) for step in range(1, arguments.steps + 1)]
    return {"tokens_per_second": statistics.median(speeds[WARM_UP:]), "start_seconds": started}


def run_rank(arguments: argparse.Namespace) -> None:
    """Be one rank."""
    began = time.perf_counter()
    from rankdrift.training import collectives

    with tempfile.TemporaryDirectory() as output, collectives.process_group():
        if arguments.kind == "growth":
            found = growth(arguments, Path(output), began)
        else:
            found = overhead(arguments, Path(output))
    if os.environ["RANK"] == "0":
        files.write_json(arguments.seen / "found.json", found)


def measured(arguments: argparse.Namespace, **given: Any) -> dict[str, float]:
    """Run all ranks; return what the first one found."""
    with tempfile.TemporaryDirectory() as seen:
        values = {"steps": arguments.steps, "seen": seen, **given}
        command = [__file__, *(f"--{key}={value}" for key, value in values.items())]
        run_ranks(command, arguments.ranks, arguments.port, {"OMP_NUM_THREADS": 1, **CPU})
        return dict(files.read_json(Path(seen) / "found.json"))


def prepared(data: Path, folder: Path, sizes: list[int]) -> dict[int, Path]:
    """Write and prepare so many rows; return the folders by size."""
    from data_preparation import make_rows  # pandas: after what rankdrift.training does to the heap

    roots = {rows: folder / str(rows) for rows in sizes}
    for rows, root in roots.items():
        make_rows(data, root, rows)
        with tempfile.TemporaryDirectory() as output:
            plan = ["train", "--config", str(CONFIG), f"output={output}", "model.name=tiny"]
            plan += ["data.tasks=[sst2]", f"data.root={root}", "training.steps=1", "training.warmup_steps=0"]
            run_ranks(["-m", "rankdrift", *plan], 1, 29744, {"OMP_NUM_THREADS": 1, **CPU})
    os.sync()  # or the disk would still be written to while the first runs are timed
    return roots


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with SST-2")
    parser.add_argument("--models", nargs="*", default=["tiny", "smollm2-135m"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--port", type=int, default=29743)
    parser.add_argument("--out", type=Path, help="JSON of the figures")
    for hidden in ("--model", "--kind"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--root", "--seen"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.seen:
        run_rank(arguments)
        return
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        roots = prepared(arguments.data, Path(folder), arguments.sizes)
        asked = [(m, {"kind": "overhead", "model": m, "root": arguments.data}) for m in arguments.models]
        asked += [(f"{n} rows", {"kind": "growth", "model": "tiny", "root": r}) for n, r in roots.items()]
        for repeat in range(arguments.repeats):
            for name, given in asked:
                runs.setdefault(name, []).append(measured(arguments, **given))
                print(f"{repeat + 1}/{arguments.repeats} {name}: {json.dumps(runs[name][-1])}", flush=True)
    names = ("models", "ranks", "steps", "repeats", "sizes")
    found: dict[str, Any] = {
        "settings": {key: getattr(arguments, key) for key in names},
        "medians": {name: medians(of_name) for name, of_name in runs.items()},
    }
    if len(arguments.sizes) > 1:
        few, many = (runs[f"{rows} rows"] for rows in (arguments.sizes[0], arguments.sizes[-1]))
        found["many_to_few_rows"] = median_ratio(many, few, "tokens_per_second")
    print(json.dumps(found, indent=2))
    if arguments.out:
        files.write_json(arguments.out, {**found, "runs": runs, "environment": files.environment()})


if __name__ == "__main__":
    main()
