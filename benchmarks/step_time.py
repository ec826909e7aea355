"""Does telling glibc to keep freed memory make training steps on CPU ranks faster? And how long is a step?

    python benchmarks/step_time.py --model smollm2-135m --repeats 5

For each method, runs of the same steps with and without the setting are made in turn, each in fresh
processes; the median seconds of the last steps of each run are compared, pair by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rankdrift import files

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "ds_configs" / "zero2.json"
WARM_UP = 3  # steps left out: first touches of memory, optimizer states
# run in each rank before rankdrift's command: the plain side makes the setting a no-op
PLAIN = "import rankdrift.training.engine as e; e._keep_freed_memory = lambda: None; "
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
        code = TRAIN if kept else PLAIN + TRAIN
        command = [sys.executable, "-c", code, "--config", str(CONFIG), *overrides]
        ranks = [
            subprocess.Popen(command, env=_environment(rank, arguments), stdout=subprocess.DEVNULL)
            for rank in range(arguments.ranks)
        ]
        if any([rank.wait() for rank in ranks]):
            raise RuntimeError(f"a rank of {method} failed")
        rows = files.read_jsonl(Path(output) / "s" / "runs" / "a-seed42" / "metrics.jsonl")
    steps = [row for row in rows if row["split"] == "train"][WARM_UP:]
    return {
        "seconds": statistics.median(row["seconds"] for row in steps),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in steps),
        "memory_gib": max(row["memory_gib"] for row in steps),
    }


def _environment(rank: int, arguments: argparse.Namespace) -> dict[str, str]:
    ranks = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": arguments.ranks,
        "LOCAL_WORLD_SIZE": arguments.ranks,
    }
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": arguments.port}
    return {**os.environ, **{key: str(value) for key, value in (ranks | address).items()}}


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
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    ratios = {
        method: statistics.median(
            plain["seconds"] / kept["seconds"]
            for plain, kept in zip(runs[f"{method} plain"], runs[f"{method} kept"], strict=True)
        )
        for method in ("full", "lora")
    }
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    files.write_json(
        arguments.output,
        {
            "claim": "keeping freed memory makes a step on CPU ranks faster (plain seconds / kept seconds)",
            "settings": settings,
            "ratio_plain_to_kept": ratios,
            "medians": medians,
            "runs": runs,
            "environment": files.environment(),
        },
    )
    print(json.dumps({"medians": medians, "ratio_plain_to_kept": ratios}, indent=2))


if __name__ == "__main__":
    main()
