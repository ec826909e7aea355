"""What is kept of gradients: inner products and sums, cell by cell, from which all statistics follow.

So a gradient is not needed once its products with the others have been taken. The unit of observation is a
row of the data: with x_r the gradient of row r's summed loss, divided by the task's mean number of targets a
row, the gradient of a task's mean loss is exactly the mean of its x_r. Rows are put into shards, of which
only the sum of the x_r is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankdrift.models.families import Cell, Level, levels_of

Array = NDArray[np.float64]
CHUNK = 2**16  # elements of each gradient that are float64 at once


@dataclass(frozen=True)
class Shards:
    """Which rows the gradients belong to; shards of one task stand beside each other."""

    tasks: tuple[str, ...]
    """The task of each shard."""
    rows: tuple[int, ...]
    """Its number of rows."""
    targets: tuple[int, ...]
    """The number of terms in its summed loss."""

    @property
    def names(self) -> tuple[str, ...]:
        """Each task once, in order."""
        return tuple(dict.fromkeys(self.tasks))

    def of(self, task: str) -> NDArray[np.intp]:
        """Return the indices of a task's shards."""
        return np.flatnonzero(np.array(self.tasks) == task)

    def sizes(self, task: str) -> Array:
        """Return the rows in each of a task's shards."""
        return np.array(self.rows, dtype=float)[self.of(task)]

    def targets_of(self, task: str) -> Array:
        """Return the targets in each of a task's shards."""
        return np.array(self.targets, dtype=float)[self.of(task)]

    def targets_a_row(self) -> Array:
        """Return the mean targets a row of each shard's task, (shards,)."""
        targets = np.array(self.targets, dtype=float)
        means = {name: targets[self.of(name)].sum() / self.sizes(name).sum() for name in self.names}
        return np.array([means[task] for task in self.tasks])

    def averages(self) -> Array:
        """Return the matrix (tasks, shards) that turns the shards' sums of x_r into each task's gradient."""
        rows = np.array(self.rows, dtype=float)
        weights = np.array([[task == name for task in self.tasks] for name in self.names], dtype=float)
        return weights / (weights @ rows)[:, None]


@dataclass(frozen=True)
class GradientSums:
    """What is kept of the gradients of some parameters; the sums of disjoint parameters add up."""

    numel: int
    """Elements of the parameters."""
    gram: Array
    """Inner products of the shards' sums of x_r, (shards, shards)."""
    absolutes: Array
    """Sum of |g| over the elements of each task's gradient, (tasks,)."""
    values: Array
    """Sum of g, (tasks,)."""
    zeros: Array
    """Elements that are exactly 0, (tasks,)."""

    def __add__(self, other: GradientSums) -> GradientSums:
        return GradientSums(
            self.numel + other.numel,
            self.gram + other.gram,
            self.absolutes + other.absolutes,
            self.values + other.values,
            self.zeros + other.zeros,
        )


def gradient_sums(gradients: Tensor, shards: Shards) -> GradientSums:
    """Return the sums of some elements, taken in float64.

    Parameters
    ----------
    gradients
        Shape (shards, elements): the gradient of each shard's summed loss.
    shards
        What the rows of ``gradients`` are.

    """
    count, device = len(shards.tasks), gradients.device
    averages = torch.from_numpy(shards.averages()).to(device)
    targets_a_row = torch.from_numpy(shards.targets_a_row()).to(device)[:, None]
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    per_task = torch.zeros(3, len(averages), dtype=torch.float64, device=device)
    for chunk in gradients.split(CHUNK, dim=1):
        exact = chunk.double() / targets_a_row
        gram += exact @ exact.T
        means = averages @ exact
        per_task += torch.stack([means.abs().sum(1), means.sum(1), (means == 0).sum(1).double()])
    return GradientSums(gradients.shape[1], gram.cpu().numpy(), *per_task.cpu().numpy())


def levels(cells: Mapping[Cell, GradientSums]) -> dict[tuple[Level, Cell], GradientSums]:
    """Return the sums of every cell, layer, group (each with its factors apart) and of all cells together."""
    found: dict[tuple[Level, Cell], GradientSums] = {}
    for cell in sorted(cells, key=lambda cell: (cell.layer, cell.group, cell.factor)):
        for key in levels_of(cell):
            found[key] = found[key] + cells[cell] if key in found else cells[cell]
    return found


@dataclass(frozen=True)
class Statistics:
    """The size of one task's gradient of the mean loss; its noise counts like everything else in it."""

    numel: int
    l2_norm: float
    mean_abs: float
    std: float
    zero_fraction: float


def statistics(sums: GradientSums, shards: Shards, task: str) -> Statistics:
    """Return the statistics of one task's gradient, as the online probe defines them."""
    number = shards.names.index(task)
    weights = shards.averages()[number]
    square = max(float(weights @ sums.gram @ weights), 0.0)  # rounding can leave a tiny negative
    mean = sums.values[number] / sums.numel
    return Statistics(
        sums.numel,
        l2_norm=math.sqrt(square),
        mean_abs=sums.absolutes[number] / sums.numel,
        std=math.sqrt(max(square / sums.numel - mean**2, 0.0)),
        zero_fraction=sums.zeros[number] / sums.numel,
    )
