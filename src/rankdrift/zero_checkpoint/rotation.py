"""Which checkpoints of a run to keep, and how to remove the others. The newest is never removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Retention:
    """What is kept besides the newest; where no rule is given, everything."""

    last: int | None = None
    """So many of the newest."""
    every: int | None = None
    """Steps that are multiples of it."""
    best: int | None = None
    """So many of the lowest cost: the validation loss, or what else selects."""
    listed: Collection[int] = ()
    """Steps by number."""

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever removed."""
        return self.last is None and self.every is None and self.best is None

    def superfluous(self, steps: Collection[int], costs: Mapping[int, float]) -> list[int]:
        """Return which of some steps to remove, in order.

        Parameters
        ----------
        steps
            Steps that have a checkpoint.
        costs
            What is better the smaller it is, by step; a step without one cannot be among the best.

        """
        if self.keeps_all:
            return []
        ordered = sorted(steps)
        ranked = sorted((step for step in ordered if step in costs), key=costs.__getitem__)
        kept = {*ordered[-(self.last or 1) :], *ranked[: self.best or 0], *self.listed}
        kept |= {step for step in ordered if self.every and step % self.every == 0}
        return [step for step in ordered if step not in kept]


def remove(checkpoint: Path) -> bool:
    """Remove a checkpoint's folder unless somebody is reading it; say whether it is gone.

    It loses its name first, so a removal that is killed leaves nothing that looks like a checkpoint.
    """
    with held(checkpoint) as free:
        if free:
            leaving = checkpoint.with_name(f".{checkpoint.name}.old")
            shutil.rmtree(leaving, ignore_errors=True)
            checkpoint.rename(leaving)
            shutil.rmtree(leaving)
        return free


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what killed saves and removals have left: folders without a step's name."""
    for pattern in (".step-*.tmp", ".step-*.old", ".step-*.gather"):
        for folder in checkpoints.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def held(checkpoint: Path) -> Iterator[bool]:
    """Hold a checkpoint's folder while it is read or removed; yield False where another process holds it.

    The lock goes with the process, so a killed one holds nothing.
    """
    descriptor = os.open(checkpoint, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
