"""One rank: save again and again, each time with one call to the operating system that fails.

``python faulty_saves.py FOLDER DS_CONFIG ...`` as one of the ranks of a process group. Every call that a save
makes fails once on every rank, as on a full disk. Afterwards, on every rank, the save must have said so, and
the newest checkpoint must be whole: the one before, or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rankdrift.cli.main import leave
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.spec import TrainingSpec
from rankdrift.training import checkpointing, collectives, engine
from rankdrift.zero_checkpoint import checksums
from rankdrift.zero_checkpoint.manifest import Manifest, newest


class Handle(io.FileIO):
    """A file whose ``write`` can be made to fail, which that of the built-in type cannot."""

    def write(self, data: Any, /) -> int:
        return super().write(data)


CALLS: list[tuple[Any, str]] = [
    (Handle, "write"),
    (os, "fsync"),
    (os, "open"),
    (os, "replace"),
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (shutil, "disk_usage"),
]


@contextlib.contextmanager
def failing(owner: Any, name: str, index: int | None) -> Iterator[list[str]]:
    """Let the ``index``-th call of a function fail (None: no call); yield a list that counts the calls."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[str] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) - 1 == index:
            raise OSError(errno.ENOSPC, f"No space left on device ({name} {index})")
        return original(*arguments, **options)

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


def built(config: dict[str, Any]) -> engine.Engine:
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    batch = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
    return engine.Engine(model, TrainingSpec(), {**config, **batch})  # type: ignore[arg-type]


class Campaign:
    """Saves of one engine, numbered by step."""

    def __init__(self, under: engine.Engine, run: RunLayout) -> None:
        self.engine, self.run, self.step, self.failures = under, run, 0, 0
        self.manifest = Manifest(
            step=0,
            world_size=collectives.world_size(),
            zero_stage=under.stage,
            method="full",
            precision="fp32",
            spec_digest="spec",
            base="base",
            base_digest="base",
            data_position=0,
            seed=0,
        )

    def save(self, owner: Any, name: str, index: int | None, on: int) -> int:
        """Save the next step while a call fails on rank ``on``; return how many such calls there were."""
        self.step += 1
        manifest, said, failed = replace(self.manifest, step=self.step), "", False
        with failing(owner, name, index if collectives.rank() == on else None) as calls:
            try:
                checkpointing.save(self.engine, self.run, manifest, False, needed=1000).finish()
            except UserError as error:
                said, failed = str(error), True
        assert not failed or ("No space left on device" in said and "checkpoints are untouched" in said), said
        outcomes = collectives.gather(failed)
        assert outcomes == [index is not None] * len(outcomes), (name, index, on, outcomes)
        self.failures += failed
        self.check(failed)
        return len(calls)

    def check(self, failed: bool) -> None:
        step = newest(self.run.checkpoints)
        assert step == self.step or (failed and step == self.step - 1), (step, self.step)
        folder = self.run.checkpoint(step)
        Manifest.read(folder).check_contents(folder)
        leftovers = [path for path in self.run.checkpoints.iterdir() if path.name.startswith(".step")]
        assert not leftovers, leftovers
        collectives.barrier()

    def run_all(self) -> None:
        for owner, name in CALLS:
            self.save(owner, name, None, on=0)  # so that the folder is there
            for rank in range(collectives.world_size()):
                calls = collectives.gather(self.save(owner, name, None, rank))[rank]
                for index in range(calls):
                    self.save(owner, name, index, rank)
                    self.save(owner, name, None, rank)
            if collectives.rank() == 0:  # the list of checkpoints would make looking for the newest slow
                shutil.rmtree(self.run.checkpoints)
            collectives.barrier()


def main(folder: Path, configs: list[Path]) -> None:
    checksums.open = Handle  # type: ignore[attr-defined]
    with collectives.process_group():
        failures = {}
        for config in configs:
            campaign = Campaign(built(json.loads(config.read_text())), RunLayout(folder / config.stem))
            campaign.run_all()
            failures[config.stem] = campaign.failures
        if collectives.rank() == 0:
            (folder / "failures.json").write_text(json.dumps(failures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    leave(0)
