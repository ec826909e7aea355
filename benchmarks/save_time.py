"""How much longer than ``engine.save_checkpoint`` alone is a save that cannot be lost?

    python benchmarks/save_time.py --parameters 400e6 --repeats 7

On CPU ranks under ZeRO-2 and ZeRO-3, a model with random weights and Adam moments is saved in turn by

- ``deepspeed``: DeepSpeed's own ``save_checkpoint``, which leaves the data in the page cache;
- ``durable``: the same, and every file flushed to the disk by the rank that wrote it;
- ``rankdrift``: shards summed up while written, flushed, described by a manifest, renamed, ``latest`` by
  rename. ``stall`` is the time until training goes on, ``seconds`` until the checkpoint is there.

Times are those of the slowest rank, between barriers; before each save the disk's queue is emptied.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from rankdrift import files
from rankdrift.cli.main import leave
from rankdrift.layout import RunLayout
from rankdrift.spec import TrainingSpec
from rankdrift.training import checkpointing, collectives, engine
from rankdrift.zero_checkpoint.checksums import flush
from rankdrift.zero_checkpoint.manifest import Manifest

HERE = Path(__file__).resolve().parent
WIDTH = 2048
SIDES = ("deepspeed", "durable", "rankdrift")


def built(parameters: int, stage: int) -> engine.Engine:
    """Return an engine of square layers that has taken one step, so that its moments exist."""
    torch.manual_seed(0)
    layers = max(1, round(parameters / WIDTH**2))
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    under = engine.Engine(model.bfloat16(), TrainingSpec(), config)
    under.backward(under.deepspeed(torch.ones(1, WIDTH, dtype=torch.bfloat16)).float().square().mean())
    under.step(1e-3)
    return under


class Saves:
    """The three ways to save one engine."""

    def __init__(self, under: engine.Engine, run: RunLayout) -> None:
        self.engine, self.run, self.step = under, run, 0
        facts = {"method": "full", "precision": "bf16", "spec_digest": "", "base": "", "base_digest": ""}
        counts = {"step": 0, "data_position": 0, "seed": 0}
        self.manifest = Manifest(
            **facts, **counts, world_size=collectives.world_size(), zero_stage=under.stage
        )

    def deepspeed(self) -> None:
        """Save as DeepSpeed does."""
        self.engine.deepspeed.checkpoint_engine = TorchCheckpointEngine()
        self.engine.deepspeed.checkpoint_engine.zipfile_serialization = True
        self.engine.deepspeed.save_checkpoint(str(self.run.checkpoints), tag=f"plain-{self.step}")

    def durable(self) -> None:
        """Save as DeepSpeed does, and flush."""
        self.deepspeed()
        for path in (self.run.checkpoints / f"plain-{self.step}").iterdir():
            if f"rank_{collectives.rank()}_" in path.name or (
                collectives.rank() == 0 and "mp_rank" in path.name
            ):
                flush(path)
        collectives.barrier()

    def rankdrift(self) -> checkpointing.Save:
        """Save as a training run does."""
        manifest = replace(self.manifest, step=self.step)
        return checkpointing.save(self.engine, self.run, manifest, exclude_frozen=False, needed=0)

    def timed(self, side: str) -> dict[str, float]:
        """Save once; return seconds and bytes, and remove the checkpoint."""
        self.step += 1
        os.sync()
        collectives.barrier()
        began = time.perf_counter()
        save: Callable[[], checkpointing.Save | None] = getattr(self, side)
        under_way = save()
        stall = collectives.max_over_ranks(time.perf_counter() - began)
        if under_way:
            under_way.finish()
        seconds = collectives.max_over_ranks(time.perf_counter() - began)
        collectives.barrier()
        files = [path for path in self.run.checkpoints.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        collectives.barrier()
        if collectives.rank() == 0:
            shutil.rmtree(self.run.checkpoints)
        collectives.barrier()
        return {"stall": stall, "seconds": seconds, "bytes": size}


def measure(arguments: argparse.Namespace) -> None:
    """Run as one rank: save in turn; rank 0 writes what it measured."""
    found: dict[str, list[dict[str, float]]] = {}
    with collectives.process_group():
        saves = Saves(built(int(arguments.parameters), arguments.stage), RunLayout(arguments.folder))
        for side in SIDES:
            saves.timed(side)  # first touches of memory
        for repeat in range(arguments.repeats):
            for side in SIDES[repeat % 3 :] + SIDES[: repeat % 3]:
                name, timed = f"zero{arguments.stage} {side}", saves.timed(side)
                found.setdefault(name, []).append(timed)
                if collectives.rank() == 0:
                    print(f"{repeat + 1} {name} {timed}", flush=True)
        if collectives.rank() == 0:
            files.write_json(arguments.folder / "found.json", found)


def start_ranks(arguments: argparse.Namespace, folder: Path, stage: int) -> dict[str, list[dict[str, float]]]:
    """Start the ranks for one ZeRO stage and return what they measured."""
    shared: dict[str, Any] = {"WORLD_SIZE": arguments.ranks, "LOCAL_WORLD_SIZE": arguments.ranks}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": arguments.port, "OMP_NUM_THREADS": 1}
    ranks = []
    for rank in range(arguments.ranks):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--stage", str(stage)]
        ranks.append(subprocess.Popen(command, env=environment))
    if any([rank.wait() for rank in ranks]):
        raise RuntimeError("a rank failed")
    found: dict[str, list[dict[str, float]]] = files.read_json(folder / "found.json")
    return found


def ratio(found: dict[str, list[dict[str, float]]], stage: int, key: str, side: str) -> float:
    """Return the median, over repetitions, of our time against the other side's."""
    pairs = zip(found[f"zero{stage} rankdrift"], found[f"zero{stage} {side}"], strict=True)
    return statistics.median(ours[key] / theirs["seconds"] for ours, theirs in pairs)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=400e6)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--port", type=int, default=29715)
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are written (default: a temporary folder)"
    )
    parser.add_argument("--stage", type=int, help="given to the ranks")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "save_time.json")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments)
        leave(0)
    found: dict[str, list[dict[str, float]]] = {}
    for stage in (2, 3):  # in fresh processes: two such engines are too much for one machine's memory
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found |= start_ranks(arguments, Path(folder), stage)
    medians = {
        name: {key: statistics.median(save[key] for save in saves) for key in ("stall", "seconds")}
        for name, saves in found.items()
    }
    ratios = {
        f"zero{stage} rankdrift {key} / {side}": ratio(found, stage, key, side)
        for stage in (2, 3)
        for key, side in (("stall", "deepspeed"), ("seconds", "deepspeed"), ("seconds", "durable"))
    }
    settings = {
        key: value for key, value in vars(arguments).items() if key in ("parameters", "ranks", "repeats")
    }
    files.write_json(
        arguments.output,
        {
            "claim": "a save that cannot be lost holds up training at most 10 % longer",
            "settings": settings,
            "medians": medians,
            "median_ratios": ratios,
            "saves": found,
            "environment": files.environment(),
        },
    )
    print(json.dumps({"medians": medians, "median_ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
