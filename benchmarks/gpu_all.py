"""All that is to be measured on one GPU, in order of worth, within a few minutes.

    python benchmarks/gpu_all.py --minutes 7        on a GPU (``make gpu``)
    python benchmarks/gpu_all.py --quick            anywhere: the same parts on tiny models

Each part is a process of its own that writes its own JSON below ``--out`` as it ends; none is begun that
would not end in time, by the seconds that stand beside it here, and one that takes longer than what is left
is stopped. ``gpu_all.json`` says of every part how it ended, in how many seconds, and what it said last.

    stages          the tests marked ``gpu`` of training: each ZeRO stage, both methods, save, resume,
                    consolidate, what a step waits for, ``micro_batch: auto``, Liger's kernels
    packed          1.1 B parameters, rows of 512 tokens: full and LoRA r16, tokens a second and MFU
    model           saves these parameters, for the parts that read them
    trainer_squad   they on rows as long as SQuAD 2's, beside the Trainer of transformers with the same
                    DeepSpeed JSON; trainer_sst2: SST-2's; trainer_fixed: 512 tokens
    spectra         spectra of a checkpoint of theirs
    compiled        as packed, with compiled blocks; liger: with Liger's kernels
    scoring         log-likelihoods beside lm-evaluation-harness, in bf16
    serving         a merged and an unmerged adapter, timed in three ways
    short           rows of 128 tokens; long: of 1024
"""

from __future__ import annotations

import argparse
import importlib.util
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
TESTS = ("gpu_training", "waits", "fitting")
NOT_BEGUN = "not begun: no time left"
MISSING = "not begun: a package is not installed"
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
    needs: str = ""
    """A package that is not among the project's own requirements."""


def parts(folder: Path, out: Path, quick: bool) -> list[Part]:
    """Return the parts in order of worth; ``folder`` takes the model that several read."""
    tests = [str(HERE.parent / "tests" / "distributed" / f"test_{name}.py") for name in TESTS]
    tests.append(str(HERE.parent / "tests" / "unit" / "models" / "test_liger.py"))
    zero1 = str(HERE.parent / "ds_configs" / "zero1.json")
    tiny = ["--shape", "tiny", "--rows", "8", "--micro-batch", "4", "--steps", "5"] if quick else []
    beside = ["--repeats", "1", "--ranks", "1", "--rank", "16", "--config", zero1]
    if quick:
        beside += ["--model", "tiny", "--steps", "4", "--warm-up", "2", "--micro-batch", "4"]
        beside += ["--sides", "grouped", "--methods", "lora"]
    else:
        beside += ["--model", str(folder), "--gpu", "--steps", "20", "--warm-up", "5"]
    asked = ["--model", "tiny" if quick else str(folder), "--speed-alone", "--repeats", "1"]
    asked += ["--tasks", "hellaswag", "sst2", *(["--timed", "10"] if quick else ["--precision", "bf16"])]

    def output(name: str) -> list[str]:
        return ["--output", str(out / f"{name}.json")]

    def training(name: str, *given: str) -> list[str]:
        lengths = ["--length", "64"] if quick else given
        return [str(HERE / "gpu_training.py"), *lengths, *tiny, "--repeats", "1", *output(name)]

    def trainer(lengths: str, longest: int, rows: int) -> list[str]:
        made = ["--lengths", lengths, "--longest", str(64 if quick else longest)]
        made += [] if quick else ["--micro-batch", str(rows)]
        into = ["--out", str(out / f"gpu_trainer_comparison_{lengths}.json")]
        return [str(HERE / "trainer_comparison.py"), *beside, *made, *into]

    save = "import sys, pathlib, gpu_training as g; "
    save += "g.save_model(g.shape(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    long = ("--length", "512")
    return [
        Part("stages", 180, ["-m", "pytest", "-q", "-m", "gpu", *tests]),
        Part("packed", 90, training("gpu_training_512", *long)),
        Part("model", 30, ["-c", save, "tiny" if quick else "1.1b", str(folder)]),
        Part("trainer_squad", 180, trainer("squad", 512, 32)),
        Part("trainer_sst2", 150, trainer("sst2", 64, 128)),
        Part("spectra", 120, [str(HERE / "gpu_spectra.py"), *(["--quick"] if quick else ["--repeats", "1"]),
                              *output("gpu_spectra")]),
        Part("compiled", 120, [*training("gpu_training_512_compiled", *long), "--set", "model.compile=true"]),
        Part("liger", 90, [*training("gpu_training_512_liger", *long), "--set", "model.liger=true"],
             needs="liger_kernel"),
        Part("scoring", 120, [str(HERE / "lm_eval_comparison.py"), *asked, *output("gpu_lm_eval_comparison")],
             needs="lm_eval"),
        Part("serving", 60, [str(HERE / "serving_method.py"), "--model", "tiny" if quick else str(folder),
                             *(["--repeats", "1"] if quick else ["--prompt", "128"]),
                             *output("gpu_serving_method")]),
        Part("short", 60, training("gpu_training_128", "--length", "128", "--rows", "256", "--micro-batch",
                                   "128")),
        Part("long", 90, training("gpu_training_1024", "--length", "1024", "--micro-batch", "16")),
        Part("trainer_fixed", 180, trainer("fixed", 512, 16)),
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


def fine(found: dict[str, Any]) -> bool:
    """Whether a part ended well, or was left out with a reason."""
    return found["ended"] in FINE or found["ended"].startswith(MISSING)


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
            if part.needs and importlib.util.find_spec(part.needs) is None:
                found = {"ended": f"{MISSING}: {part.needs}", "seconds": 0.0}
            elif left < needed:
                found = {"ended": NOT_BEGUN, "seconds": 0.0}
            else:
                found = run(part, left)
            told[part.name] = found
            files.write_json(out / "gpu_all.json", {"parts": told, "environment": files.environment()})
            print(f"{part.name}: {found['ended']}, {found['seconds']:.0f} s", flush=True)
            if not fine(found):
                print(found["output"], flush=True)
    return int(not all(map(fine, told.values())))


if __name__ == "__main__":
    sys.exit(main())
