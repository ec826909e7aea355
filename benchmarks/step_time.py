"""Does the heap of ``training/heap.py`` make training steps on CPU ranks faster? And how long is a step?

    python benchmarks/step_time.py --model smollm2-135m --repeats 5

For each method, runs of the same steps with and without it are made in turn, each in fresh processes; the
mean seconds of the last steps of each run are compared, pair by pair: without it every second step is slow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rank_processes import CPU, PLAIN_HEAP, median_ratio, medians, run_ranks

from rankdrift import files
from rankdrift.studies.launcher import WHOLE_HOLES

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "ds_configs" / "zero2.json"
WARM_UP = 3  # steps left out: first touches of memory, optimizer states
TRAIN = "import sys; from rankdrift.cli.main import main; sys.exit(main(['train', *sys.argv[1:]]))"


def run_once(arguments: argparse.Namespace, method: str, kept: bool) -> dict[str, float]:
    """Train a few steps on the ranks of this machine; return median seconds and memory of a rank."""
    with tempfile.TemporaryDirectory() as output:
        overrides = [
            *(
                f"output={output}",
                "study=s",
                "arm=a",
                f"model.name={arguments.model}",
                f"method.name={method}",
            ),
            *(f"training.steps={arguments.steps}", "training.warmup_steps=1", "training.save_every=null"),
            *(
                "training.probe_every=0",
                "training.eval_rows=2",
                f"training.global_batch={8 * arguments.ranks}",
            ),
        ]
        code = TRAIN if kept else PLAIN_HEAP + TRAIN
        command = ["-c", code, "--config", str(CONFIG), *overrides]
        environment = CPU | ({"GLIBC_TUNABLES": WHOLE_HOLES} if kept else {})
        run_ranks(command, arguments.ranks, arguments.port, environment)
        rows = files.read_jsonl(Path(output) / "s" / "runs" / "a-seed42" / "metrics.jsonl")
    steps = [row for row in rows if row["split"] == "train"][WARM_UP:]
    return {
        "seconds": statistics.fmean(row["seconds"] for row in steps),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in steps),
        "memory_gib": max(row["memory_gib"] for row in steps),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=29713)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step_time.json")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    for repeat in range(arguments.repeats):
        for method in ("full", "lora"):
            for side, kept in (("kept", True), ("plain", False)):
                result = run_once(arguments, method, kept)
                runs.setdefault(f"{method} {side}", []).append(result)
                print(f"{repeat + 1}/{arguments.repeats} {method} {side}: {json.dumps(result)}", flush=True)
    ratios = {
        method: median_ratio(runs[f"{method} plain"], runs[f"{method} kept"], "seconds")
        for method in ("full", "lora")
    }
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    files.write_json(
        arguments.output,
        {
            "claim": "a rank of one heap that keeps what was freed is faster (plain / kept seconds)",
            "settings": settings,
            "ratio_plain_to_kept": ratios,
            "medians": {name: medians(found) for name, found in runs.items()},
            "runs": runs,
            "environment": files.environment(),
        },
    )
    print(
        json.dumps(
            {
                "medians": {name: medians(found) for name, found in runs.items()},
                "ratio_plain_to_kept": ratios,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
