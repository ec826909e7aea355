"""Which steps of a run are saved, and how many of their checkpoints stay."""

from __future__ import annotations

from typing import NamedTuple

from rankdrift.spec import TrainingSpec
from rankdrift.training.callbacks import is_due
from rankdrift.zero_checkpoint.rotation import Retention


class Saves(NamedTuple):
    """The checkpoints of a run."""

    written: int
    kept: int
    """Those that are left when it is done; of the best, which are not known yet, as many as are kept."""
    at_once: int
    """Most that are there at any time: one is removed once the next one is there."""


def saves(training: TrainingSpec, start: int = 0) -> Saves:
    """Return how many checkpoints a run writes after a step, and how many stay."""
    later = [step for step in range(start + 1, training.steps + 1) if is_save_step(training, step)]
    gone = retention(training).superfluous(later, costs={})
    kept = len(later) - len(gone) + (training.keep_best or 0)
    return Saves(len(later), min(len(later), kept), min(len(later), kept + 1))


def retention(training: TrainingSpec) -> Retention:
    """Return which checkpoints of a run stay."""
    return Retention(training.keep_last, training.keep_every, training.keep_best, training.save_steps)


def is_save_step(training: TrainingSpec, step: int) -> bool:
    """Return whether a step is saved."""
    return is_due(step, training.save_every, training.steps) or step in training.save_steps
