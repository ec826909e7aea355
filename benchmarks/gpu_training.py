"""How many tokens a second, and how much of the GPU, do full fine-tuning and LoRA reach on one GPU?

    python benchmarks/gpu_training.py                            on a GPU: Llama's shape of 1.1 B parameters
    python benchmarks/gpu_training.py --shape tiny --repeats 1   anywhere: checks the script itself

Weights are random (speed does not depend on them) and so are the rows (``made_rows.py``): of one length,
every token of the second half carrying loss, or (``--lengths``) as long as SST-2's or SQuAD 2's.
Each run is a process of its own: our own loop on our own engine, without saves. Runs of both methods are
made in turn; what is measured is written after each, and none is begun that ``--minutes`` has no time for.

Operations are those of ``training/flops.py``; MFU is their share of the matrix product measured in the same
process. ``--set`` changes any setting of the runs (``--set model.compile=true``). ``--profile`` adds the
kernels that take the time of two steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from made_rows import LENGTHS, with_rows
from transformers import LlamaConfig, LlamaForCausalLM

from rankdrift import files
from rankdrift.models.tiny import tiny_config, tiny_tokenizer

HERE = Path(__file__).resolve().parent
WARM_UP, METHODS = 3, ("full", "lora")
RANK = 16


def shape(name: str) -> LlamaConfig:
    """Return the model's configuration; 1.1b is that of TinyLlama-1.1B."""
    if name == "tiny":
        return tiny_config()
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        pad_token_id=1,
        eos_token_id=0,
        bos_token_id=None,
    )


def save_model(config: LlamaConfig, folder: Path) -> None:
    """Save random weights and the byte tokenizer."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


# ---- one run, in a process of its own


def train_once(method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps on one rank; return the medians of all but the first, and what the GPU can do."""
    from rankdrift.layout import StudyLayout
    from rankdrift.spec import apply_overrides, parse_spec
    from rankdrift.training import collectives, engine, setup, trainer
    from rankdrift.training.flops import model_flops
    from rankdrift.training.matmul_peak import matmul_flops_per_second
    from rankdrift.training.run import prepared_model

    rows = arguments.rows
    with tempfile.TemporaryDirectory() as output, collectives.process_group():
        overrides = [
            f"output={output}",
            f"model.name={folder}",
            f"method.name={method}",
            f"method.rank={RANK}",
        ]
        overrides += ["data.tasks=[topic]", f"data.train_limit={rows}", "data.validation_limit=8"]
        overrides += [f"training.steps={arguments.steps}", f"training.global_batch={rows}"]
        overrides += [f"training.micro_batch={arguments.micro_batch}", "training.warmup_steps=1"]
        overrides += ["training.probe_every=0", "training.precision=bf16"]
        spec = parse_spec(apply_overrides({}, [*overrides, *arguments.set]))
        run = StudyLayout(spec.study_root).run(spec.run_name)
        planned = setup.set_up(spec, run, HERE.parent / "ds_configs" / arguments.config)
        count, vocabulary = rows * arguments.steps, shape(arguments.shape).vocab_size
        planned = with_rows(planned, arguments.lengths, arguments.length, count, vocabulary)
        lengths, order = planned.data.lengths, planned.data.order
        under = engine.Engine(prepared_model(planned), spec.training, planned.config)
        loop = trainer.Trainer(planned, under)
        seconds = [timed(loop, step) for step in range(1, arguments.steps + 1)][WARM_UP:]
        timed_steps = range(WARM_UP + 1, arguments.steps + 1)
        tokens = sum(int(lengths[order.rows(step - 1)].sum()) for step in timed_steps)
        flops = model_flops(under.module)
        operations = sum(
            flops.of_rows(lengths[order.rows(step - 1)], loop.targets(step)) for step in timed_steps
        )
        peak = matmul_flops_per_second(collectives.device(), next(under.module.parameters()).dtype)
        found = {
            "seconds": statistics.median(seconds),
            "tokens_per_second": tokens / sum(seconds),
            "teraflops": operations / sum(seconds) / 1e12,
            "mfu": operations / sum(seconds) / peak,
            "padding": loop.loss.padding(
                [part for step in range(arguments.steps) for part in loop.micro_batches(step + 1)]
            ),
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
            "trained": sum(under.numels.values()),
            "matmul_teraflops": peak / 1e12,
        }
        if arguments.profile:
            found["kernels"] = profile(loop)
    return found


def timed(loop: Any, step: int) -> float:
    """Return the seconds of one step, the device's work included."""
    from rankdrift.training import collectives

    collectives.wait_for_device()
    began = time.perf_counter()
    loop.train_step(step)
    collectives.wait_for_device()
    return time.perf_counter() - began


def profile(loop: Any) -> list[dict[str, Any]]:
    """Return the kernels that two steps spend most of the device's time in, and the host's operators."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with torch.profiler.profile(activities=activities) as recorded:
        for step in (1, 2):
            timed(loop, step)
    events = sorted(
        recorded.key_averages(), key=lambda e: -(e.self_device_time_total or e.self_cpu_time_total)
    )
    return [
        {
            "name": e.key[:100],
            "calls": e.count,
            "device_ms": e.self_device_time_total / 1e3,
            "host_ms": e.self_cpu_time_total / 1e3,
        }
        for e in events[:40]
    ]


# ---- all runs


def summary_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over runs of one method."""
    rates = ("tokens_per_second", "teraflops", "mfu")
    return {**{rate: statistics.median(run[rate] for run in runs) for rate in rates}, "runs": len(runs)}


def main(arguments: argparse.Namespace) -> None:
    """Measure in turn until time is up; write what there is after every run."""
    ends = time.monotonic() + 60 * arguments.minutes
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    with tempfile.TemporaryDirectory() as scratch:
        folder, longest = Path(scratch) / "model", 0.0
        save_model(shape(arguments.shape), folder)
        for number in range(arguments.repeats * len(METHODS)):
            began = time.monotonic()
            if began + longest > ends:
                print(f"no time for run {number + 1}", flush=True)
                break
            method = METHODS[number % len(METHODS)]
            command = [sys.executable, __file__, *sys.argv[1:], "--one", method, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[method].append(json.loads(done.stdout.strip().splitlines()[-1]))
            longest = max(longest, time.monotonic() - began)
            print(
                method,
                {k: v for k, v in runs[method][-1].items() if k != "kernels"},
                f"{longest:.0f} s",
                flush=True,
            )
            summary = {m: summary_of(found) for m, found in runs.items() if found}
            result = {"settings": settings, "gpu": gpu, "summary": summary, "runs": runs}
            files.write_json(arguments.output, {**result, "environment": files.environment()})
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("1.1b", "tiny"), default="1.1b")
    parser.add_argument("--rows", type=int, default=64, help="rows a step")
    parser.add_argument("--micro-batch", type=int, default=32, help="rows a pass")
    parser.add_argument("--length", type=int, default=512, help="longest row, in tokens")
    parser.add_argument("--lengths", choices=LENGTHS, default=LENGTHS[0])
    parser.add_argument("--config", default="zero1.json")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all runs")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu_training.json")
    given = parser.parse_args()
    print(json.dumps(train_once(given.one, given.folder, given))) if given.one else main(given)
