"""Does the heap of ``training/heap.py`` make training steps on CPU ranks faster? And how long is a step?

    python benchmarks/step_time.py --model smollm2-135m --repeats 5
    python benchmarks/step_time.py --compare holes --output benchmarks/results/whole_holes.json

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


SIDES = {
    "heap": {"kept": (TRAIN, {"GLIBC_TUNABLES": WHOLE_HOLES}), "plain": (PLAIN_HEAP + TRAIN, {})},
    "holes": {"whole holes": (TRAIN, {"GLIBC_TUNABLES": WHOLE_HOLES}), "cached rests": (TRAIN, {})},
}
"""What is compared: of each side what a rank runs, and what it is told."""
CLAIMS = {
    "heap": "a rank of one heap that keeps what was freed is faster",
    "holes": "a rank's heap without a cache of small blocks (studies/launcher.py) is no slower",
}


def run_once(arguments: argparse.Namespace, method: str, side: str) -> dict[str, float]:
    """Train a few steps on the ranks of this machine; return mean seconds and memory of a rank."""
    code, told = SIDES[arguments.compare][side]
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
        command = ["-c", code, "--config", str(CONFIG), *overrides]
        run_ranks(command, arguments.ranks, arguments.port, CPU | told)
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
    parser.add_argument("--compare", choices=list(SIDES), default="heap")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=29713)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step_time.json")
    arguments = parser.parse_args()
    first, second = SIDES[arguments.compare]
    name = f"ratio_{second}_to_{first}".replace(" ", "_")
    runs: dict[str, list[dict[str, float]]] = {}
    for repeat in range(arguments.repeats):
        for method in ("full", "lora"):
            for side in (first, second):
                result = run_once(arguments, method, side)
                runs.setdefault(f"{method} {side}", []).append(result)
                print(f"{repeat + 1}/{arguments.repeats} {method} {side}: {json.dumps(result)}", flush=True)
    ratios = {
        method: median_ratio(runs[f"{method} {second}"], runs[f"{method} {first}"], "seconds")
        for method in ("full", "lora")
    }
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    files.write_json(
        arguments.output,
        {
            "claim": f"{CLAIMS[arguments.compare]} ({second} / {first} seconds)",
            "settings": settings,
            name: ratios,
            "medians": {name: medians(found) for name, found in runs.items()},
            "runs": runs,
            "environment": files.environment(),
        },
    )
    print(
        json.dumps(
            {
                "medians": {name: medians(found) for name, found in runs.items()},
                name: ratios,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
