"""How much of a checkpoint does an analysis read for one matrix? And is it slower than from an export?

    python benchmarks/virtual_read.py --folder FOLDER             matrices of 2048x5632, 4 GB below FOLDER
    python benchmarks/virtual_read.py --folder FOLDER --small     checks the script itself

Two CPU ranks train one fp32 step of a Llama of random weights under ZeRO-2 and ZeRO-3 and save it, and the
checkpoint is consolidated. Then, each time in a fresh process and with the files out of the page cache, one
matrix is read from the shards, and every projection's update is read from the shards and from the export, in
turn. Counted are the pages of the files that are in the page cache afterwards, the bytes the process made the
disk read, and the seconds, imports left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from consolidation import disk_bytes, evict, resident_bytes
from gpu_training import save_model, shape

from rankdrift import files
from rankdrift.layout import RunLayout

HERE = Path(__file__).resolve().parent
RANKS, STEP = 2, 1
STAGES = (2, 3)
TARGET_MB = 64
READ_AHEAD = Path("/sys/class/bdi")


def make_base(folder: Path, small: bool) -> None:
    """Save the model that is trained, unless it is there."""
    if (folder / "tokenizer.json").exists():
        return
    config = shape("tiny" if small else "1.1b")
    config.num_hidden_layers, config.vocab_size = 3, shape("tiny").vocab_size
    save_model(config, folder)


def make_run(folder: Path, base: Path, stage: int) -> RunLayout:
    """Train one step on two ranks, save and consolidate it, unless that is done; return the run."""
    from rankdrift.export.consolidate import consolidate
    from rankdrift.studies.launcher import launch

    run = RunLayout(folder / "s" / "runs" / f"zero-{stage}-seed42")
    if not run.export(STEP).exists():
        config = HERE.parent / "ds_configs" / f"zero{stage}.json"
        overrides = [
            *(f"output={folder}", "study=s", f"arm=zero-{stage}", f"model.name={base}", "method.name=full"),
            *("data.tasks=[describe]", "data.max_length=64", f"training.global_batch={RANKS}"),
            *("training.micro_batch=1", f"training.steps={STEP}", f"training.save_every={STEP}"),
            *("training.warmup_steps=0", "training.probe_every=0", "training.eval_rows=2"),
            "training.precision=fp32",
        ]
        launch(RANKS, ["--config", str(config), *overrides])
        consolidate(run, STEP)
    return run


def read_matrix(tuned: Path, base: Path) -> dict[str, Any]:
    """Read one of the largest matrices from the shards."""
    from rankdrift.analysis.sources.folders import model_tensors

    tensors = model_tensors(tuned)
    matrix = tensors.tensor("model.layers.1.mlp.down_proj.weight")
    return {"shape": list(matrix.shape), "matrix_mb": matrix.nbytes / 1e6}


def read_updates(tuned: Path, base: Path) -> dict[str, Any]:
    """Read every projection beside its base, as the analysis of spectra does."""
    from rankdrift.analysis.sources.weights import open_weights

    weights = open_weights(base, tuned)
    return {"matrices": sum(bool(weights.pair(name).update.dense().any()) for name in weights.base.names)}


def run_side(what: str, tuned: Path, base: Path) -> None:
    """Read once; print the measurements as the last line."""
    import rankdrift.analysis.sources.weights  # noqa: F401  # imports are no part of reading

    work = {"matrix": read_matrix, "updates": read_updates}[what]
    before, began = disk_bytes()[0], time.perf_counter()
    facts = work(tuned, base)
    seconds = time.perf_counter() - began
    print(json.dumps({**facts, "seconds": seconds, "disk_read_mb": (disk_bytes()[0] - before) / 1e6}))


def measure(what: str, tuned: Path, base: Path) -> dict[str, Any]:
    """Read once in a fresh process, from the disk."""
    evict(tuned)
    evict(base)
    command = [sys.executable, __file__, "side", what, str(tuned), str(base)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**facts, "touched_mb": resident_bytes(tuned) / 1e6}


def compare(run: RunLayout, base: Path, repeats: int) -> dict[str, Any]:
    """Measure one checkpoint several times, the sides in turn; return medians and all runs."""
    shards, export = run.checkpoint(STEP), run.export(STEP)
    sides = {
        "one matrix": ("matrix", shards),
        "all updates, shards": ("updates", shards),
        "all updates, export": ("updates", export),
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, (what, tuned) in sides.items():
            runs[side].append(measure(what, tuned, base))
            print(f"{run.root.name} {repeat + 1}/{repeats} {side}: {json.dumps(runs[side][-1])}", flush=True)
    keys = ("seconds", "disk_read_mb", "touched_mb")
    medians = {
        side: {key: statistics.median(found[key] for found in of_side) for key in keys}
        for side, of_side in runs.items()
    }
    seconds = {side: values["seconds"] for side, values in medians.items()}
    return {
        "matrix_mb": runs["one matrix"][0]["matrix_mb"],
        "matrix_shape": runs["one matrix"][0]["shape"],
        "checkpoint_mb": sum(file.stat().st_size for file in shards.iterdir()) / 1e6,
        "medians": medians,
        "below_target": max(medians["one matrix"][key] for key in ("touched_mb", "disk_read_mb")) < TARGET_MB,
        "seconds_of_shards_to_export": seconds["all updates, shards"] / seconds["all updates, export"],
        "runs": runs,
    }


def read_ahead_kb(folder: Path) -> int:
    """Return how far the kernel reads ahead of a sequential reader on the folder's device."""
    device = folder.stat().st_dev
    return int((READ_AHEAD / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb").read_text())


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Make the checkpoints, measure, write the result."""
    base = folder / "base"
    make_base(base, arguments.small)
    stages = {}
    for stage in STAGES:
        stages[f"zero-{stage}"] = compare(make_run(folder, base, stage), base, arguments.repeats)
    result = {
        "claim": f"one matrix of a sharded checkpoint is read by touching less than {TARGET_MB} MB",
        "settings": {"repeats": arguments.repeats, "ranks": RANKS, "small": arguments.small},
        "read_ahead_kb": read_ahead_kb(folder),
        "stages": stages,
        "environment": files.environment(),
    }
    files.write_json(arguments.output, result)
    for name, found in stages.items():
        print(name, json.dumps({key: value for key, value in found.items() if key != "runs"}, indent=2))


def arguments_of(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are made, and deleted")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "virtual_read.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        run_side(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        parsed = arguments_of(sys.argv[1:])
        with tempfile.TemporaryDirectory(dir=parsed.folder) as temporary:
            main(parsed, Path(temporary))
