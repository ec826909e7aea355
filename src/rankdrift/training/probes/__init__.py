"""Measurements taken while a run trains, every ``training.probe_every`` steps; one file each.

To add one, write ``training/probes/<name>.py`` that defines ``PROBE``, a class derived from :class:`Probe`.
Every rank has one of its own and calls it at the same points of the same steps. What it returns is this
rank's part of sums over ranks: those of all probes travel as one vector, after the update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from rankdrift.data.tokens import Row
    from rankdrift.training.trainer import Trainer


Columns = dict[str, Any]
"""Some rows of a table: arrays of one length by name, or single values that are in all of them."""


@dataclass(frozen=True)
class Sums:
    """This rank's part of a measurement."""

    own: Tensor
    """What is added up over the ranks: fp64, of any shape, the same on every rank."""
    table: Callable[[np.ndarray], Columns]
    """Totals, in the shape of ``own`` -> rows of the probe's table; called on rank 0, when it has time."""
    scalars: Callable[[np.ndarray], dict[str, float]] = lambda totals: {}
    """Totals -> what TensorBoard shows, by name."""
    pictures: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda totals: {}
    """Totals -> what it shows of the last of them when a checkpoint is made: names and values, 2-d."""


class Probe:
    """Measures nothing at any point; a probe overrides the points it needs.

    Parameters
    ----------
    trainer
        The run; its model, its engine and its data are there.

    """

    name: str
    """Of the file, and of its table: ``probes/<name>.parquet``."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @staticmethod
    def applies(trainer: Trainer) -> bool:
        """Return whether a run has what is measured; the same on every rank."""
        return True

    def before_forward(self) -> None:
        """Before the first forward pass of a step that is measured."""

    def before_micro_batch(self, rows: list[Row]) -> None:
        """Before a micro-batch of such a step."""

    def before_update(self) -> Sums | None:
        """Between its last backward pass and its update, when gradients are averaged."""
        return None

    def after_update(self) -> Sums | None:
        """After its update."""
        return None
