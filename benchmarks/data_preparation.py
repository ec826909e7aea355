"""How fast are rows prepared beyond the tokenizer's own time, and what does a rank of many rows cost?

    python benchmarks/data_preparation.py --data ../shared/data --model smollm2-135m --rows 400000

SST-2's training rows, repeated with a number of their own behind each, are prepared once with the tokenizer's
calls timed apart (both in seconds of the CPU, of one thread), and asked for a second time. Then fresh
processes, as a rank does, load the prepared rows and take the first global batches, with few rows and with
all of them in turn.
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

import pandas as pd

from rankdrift import files

FEW = 1000
GOALS = {
    "rows_per_second": 50_000,
    "second_preparation_seconds": 1.0,
    "more_start_seconds": 2.0,
    "more_start_mb": 200.0,
}


class TimedBackend:
    """The fast tokenizer, and how long its calls took."""

    def __init__(self, backend: Any) -> None:
        self.__dict__.update(backend=backend, seconds=0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.backend, name, value)

    def encode_batch_fast(self, *arguments: Any, **options: Any) -> Any:
        """Tokenise."""
        began = time.process_time()
        found = self.backend.encode_batch_fast(*arguments, **options)
        self.__dict__["seconds"] += time.process_time() - began
        return found


class TimedTokenizer:
    """A tokenizer whose backend is timed."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.backend_tokenizer = tokenizer, TimedBackend(tokenizer.backend_tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Tokenise as transformers does."""
        return self.tokenizer(*arguments, **options)


def make_rows(data: Path, folder: Path, rows: int) -> None:
    """Write so many different training rows, a tenth of which select."""
    slice_of = pd.read_parquet(data / "glue_sst2" / "train.parquet")
    parts = [
        slice_of.assign(sentence=slice_of["sentence"].str.strip() + f" ( {number} )")
        for number in range(-(-rows // len(slice_of)))
    ]
    (folder / "glue_sst2").mkdir(parents=True)
    pd.concat(parts, ignore_index=True)[:rows].to_parquet(folder / "glue_sst2" / "train.parquet")


def settings(root: Path) -> Any:
    """Return the experiment."""
    from rankdrift.spec import parse_spec

    return parse_spec({"data": {"tasks": ["sst2"], "root": str(root)}})


def prepare(root: Path, model: str) -> dict[str, float]:
    """Prepare the training rows, and once more; return seconds."""
    from rankdrift import registry
    from rankdrift.data.dataset import codec_of, load_rows
    from rankdrift.data.prepare import Preparation
    from rankdrift.models.base import load_tokenizer, resolve

    spec, tokenizer = settings(root), load_tokenizer(resolve(model))
    task = registry.load("task", "sst2")
    codec = codec_of(spec, task, tokenizer)
    timed = codec.tokenizer = TimedTokenizer(tokenizer)
    began = time.process_time()
    table = Preparation(tokenizer, spec.data).table(task, "train", codec)
    seconds = time.process_time() - began
    load_rows(spec, "validation", tokenizer)
    began = time.perf_counter()
    for split in ("train", "validation"):
        load_rows(spec, split, tokenizer)  # type: ignore[arg-type]
    second = time.perf_counter() - began
    own = timed.backend_tokenizer.seconds
    return {
        "rows": len(table),
        "seconds": seconds,
        "tokenizer_seconds": own,
        "rows_per_second": len(table) / (seconds - own),
        "second_preparation_seconds": second,
    }


def start(root: Path, model: str) -> dict[str, float]:
    """Load prepared rows and take a global batch, as a rank does; return its seconds and memory."""
    import psutil

    from rankdrift.data.batches import packed, rank_micro_batches
    from rankdrift.data.dataset import load_training_data
    from rankdrift.models.base import load_tokenizer, resolve

    spec, tokenizer = settings(root), load_tokenizer(resolve(model))
    began = time.perf_counter()
    data = load_training_data(spec, tokenizer, "left")
    for step in range(3):
        for part in rank_micro_batches(data.order.rows(step), data.lengths, 0, 2, 4):
            packed([data.train[number] for number in part])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "mb": psutil.Process().memory_info().rss / 1e6}


def in_a_process(what: str, root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Return what one of the above measures, in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--root", str(root), "--model", arguments.model]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}  # as rankdrift's commands set it
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; return it with the goals."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["RANKDRIFT_CACHE"] = os.environ.get("RANKDRIFT_CACHE", str(folder / "cache"))
        many, few = folder / "many", folder / "few"
        make_rows(arguments.data, many, arguments.rows)
        make_rows(arguments.data, few, FEW)
        prepared = in_a_process("prepare", many, arguments)
        in_a_process("prepare", few, arguments)
        starts = [
            (in_a_process("start", many, arguments), in_a_process("start", few, arguments))
            for _ in range(arguments.repeats)
        ]
    more = {key: statistics.median(a[key] - b[key] for a, b in starts) for key in ("seconds", "mb")}
    return {
        **prepared,
        "more_start_seconds": more["seconds"],
        "more_start_mb": more["mb"],
        "starts": starts,
        "goals": GOALS,
        "environment": files.environment(),
    }


def main() -> None:
    """Measure, and say it beside the goals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with glue_sst2/train.parquet")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each kind")
    parser.add_argument("--out", type=Path, help="JSON of the figures")
    parser.add_argument("--measure", choices=("prepare", "start"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure = prepare if arguments.measure == "prepare" else start
        print(json.dumps(measure(arguments.root, arguments.model)))
        return
    found = compare(arguments)
    print("\n".join(f"{key}: {found[key]:,.3f} (goal {goal:,})" for key, goal in GOALS.items()))
    if arguments.out:
        files.write_json(arguments.out, found)


if __name__ == "__main__":
    main()
