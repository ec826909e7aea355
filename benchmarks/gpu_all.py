"""All that is to be measured on one GPU, in order of worth, within a few minutes.

    python benchmarks/gpu_all.py --minutes 7        on a GPU (``make gpu``)
    python benchmarks/gpu_all.py --quick            anywhere: the same parts on tiny models

Each part is a process of its own that writes its own JSON below ``--out`` as it ends; none is begun that
would not end in time, by the seconds that stand beside it here, and one that takes longer than what is left
is stopped. ``gpu_all.json`` says of every part how it ended, in how many seconds, and what it said last.

    stages      the tests marked ``gpu`` of training: each ZeRO stage, both methods, save, resume,
                consolidate, and what a step waits for
    packed      1.1 B parameters, rows of 512 tokens: full and LoRA r16, tokens a second and MFU
    trainer     the same base on short rows, beside the Trainer of transformers with the same DeepSpeed JSON
    short       rows of 128 tokens, spread as SST-2's are
    long        rows of 1024 tokens
    compiled    as packed, with compiled blocks
    spectra     spectra of a checkpoint of 1.1 B parameters
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import files

HERE = Path(__file__).resolve().parent
NOT_BEGUN = "not begun: no time left"
FINE = ("exit 0", NOT_BEGUN)
TAIL = 2000
"""Characters of a part's output that are kept."""


@dataclass(frozen=True)
class Part:
    """A process to run."""

    name: str
    seconds: int
    """What it takes on a GPU, at most, as estimated."""
    command: list[str]


def parts(folder: Path, out: Path, quick: bool) -> list[Part]:
    """Return the parts in order of worth; ``folder`` takes the model of the comparison."""
    tests = [
        str(HERE.parent / "tests" / "distributed" / f"test_{name}.py") for name in ("gpu_training", "waits")
    ]
    training, trainer = str(HERE / "gpu_training.py"), str(HERE / "trainer_comparison.py")
    size = ["--shape", "tiny", "--rows", "8", "--micro-batch", "4", "--steps", "5"] if quick else []
    size += ["--repeats", "1"]
    sides = ["--repeats", "1", "--ranks", "1", "--config", str(HERE.parent / "ds_configs" / "zero1.json")]
    if quick:
        sides += ["--model", "tiny", "--steps", "4", "--warm-up", "2"]
        sides += ["--sides", "grouped", "--methods", "lora"]
    else:
        sides += ["--model", str(folder), "--gpu", "--steps", "20", "--warm-up", "5"]
    compiled = ["--set", "model.compile=true"]

    def output(name: str) -> list[str]:
        return ["--output", str(out / f"{name}.json")]

    def lengths(name: str, *given: str) -> list[str]:
        return [training, *(["--length", "64"] if quick else given), *size, *output(name)]

    save = "import sys, pathlib, gpu_training as g; "
    save += "g.save_model(g.shape(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    return [
        Part("stages", 150, ["-m", "pytest", "-q", "-m", "gpu", *tests]),
        Part("packed", 90, lengths("gpu_training_512", "--length", "512")),
        Part("model", 30, ["-c", save, "tiny" if quick else "1.1b", str(folder)]),
        Part("trainer", 240, [trainer, *sides, "--out", str(out / "gpu_trainer_comparison.json")]),
        Part("short", 60, lengths("gpu_training_128", "--length", "128", "--lengths", "sst2", "--rows", "256",
                                  "--micro-batch", "128")),
        Part("long", 90, lengths("gpu_training_1024", "--length", "1024", "--micro-batch", "16")),
        Part("compiled", 150, [*lengths("gpu_training_512_compiled", "--length", "512"), *compiled]),
        Part("spectra", 180, [str(HERE / "gpu_spectra.py"), *(["--quick"] if quick else ["--repeats", "1"]),
                              *output("gpu_spectra")]),
    ]  # fmt: skip


def run(part: Part, left: float) -> dict[str, Any]:
    """Run a part for no longer than the seconds that are left; return how it ended."""
    began = time.perf_counter()
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            [sys.executable, *part.command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=left,
            env=environment,
            check=False,
        )
        ended, said = f"exit {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as error:
        ended, said = "stopped: no time left", str(error.stdout or "")
    return {"ended": ended, "seconds": time.perf_counter() - began, "output": said[-TAIL:]}


def main() -> int:
    """Run what there is time for; return 1 where a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--quick", action="store_true", help="tiny models, on whatever there is")
    parser.add_argument("--only", nargs="+", help="these parts alone")
    parser.add_argument("--out", type=Path, help="default: results, or a temporary folder with --quick")
    arguments = parser.parse_args()
    end = time.perf_counter() + 60 * arguments.minutes
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or (Path(scratch) / "results" if arguments.quick else HERE / "results")
        out.mkdir(parents=True, exist_ok=True)
        for part in parts(Path(scratch) / "model", out, arguments.quick):
            if arguments.only and part.name not in arguments.only:
                continue
            left = end - time.perf_counter()
            needed = 1 if arguments.quick else part.seconds
            found = run(part, left) if left >= needed else {"ended": NOT_BEGUN, "seconds": 0.0}
            told[part.name] = found
            files.write_json(out / "gpu_all.json", {"parts": told, "environment": files.environment()})
            print(f"{part.name}: {found['ended']}, {found['seconds']:.0f} s", flush=True)
            if found["ended"] not in FINE:
                print(found["output"], flush=True)
    return int(any(found["ended"] not in FINE for found in told.values()))


if __name__ == "__main__":
    sys.exit(main())
