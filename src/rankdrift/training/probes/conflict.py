"""Whether the gradients of a run's tasks agree: inner products of two halves of every task's rows in a step.

A task's rows are put through the model by themselves (``training.probe_conflict``), the rows of even ranks
are one half and those of odd ranks the other (on one rank, every second one), and no pass is made for it. The
rows of different halves are different, so their inner products are free of the noise that makes norms large
and cosines small:

    <G_i, G_j> = mean of the four <g_i^x, g_j^y>,    |G_i|² = <g_i^a, g_i^b>,    x, y in {a, b},

and the cosine of both is <G_i, G_j> / sqrt(|G_i|² |G_j|²) (the correction of Spearman, 1904). A single step's
|G_i|² may be negative: means over steps are taken before the ratio is. Gradients of many parameters are read
at every n-th element, which leaves cosines right to about one over the root of the elements read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankdrift.data.tokens import Row
from rankdrift.training import collectives
from rankdrift.training.probes import Columns, Probe, Sums
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import RUN

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

MOST = 2**22
"""Elements of a gradient that are read."""
HALVES = 2


def stride_of(elements: int) -> int:
    """Return every how many-th element is read: a prime, or some columns of a matrix would never be.

    >>> stride_of(100), stride_of(134_515_008)
    (1, 37)
    """
    stride = -(-elements // MOST)
    while any(stride % factor == 0 for factor in range(2, math.isqrt(stride) + 1)):
        stride += 1
    return stride


def compares_tasks(trainer: Trainer) -> bool:
    """Return whether a run puts its tasks through the model by themselves, in the steps that are probed."""
    several = trainer.training.probe_conflict and len(trainer.data.train.tasks) > 1
    # a penalty's gradient is in every micro-batch's, and would look like agreement
    return several and getattr(trainer.engine.module, "penalty", None) is None


class Places:
    """Where the elements that are read lie in a rank's vector: each parameter's in runs of its own.

    Parameters
    ----------
    numels
        Elements of the parameters.
    ranks
        How many ranks the runs are shared out to, in equal parts.

    """

    def __init__(self, numels: Sequence[int], ranks: int) -> None:
        self.stride = stride_of(sum(numels))
        read = [-(-numel // self.stride) for numel in numels]
        runs = [-(-count // RUN) for count in read]
        spare = -sum(runs) % ranks
        self.length = (sum(runs) + spare) * RUN
        between = [(count, -count % RUN) for count in read]
        self.sizes = [*itertools.chain.from_iterable(between), spare * RUN]
        """Of each parameter's elements and of what fills up its last run, by turns."""
        # the spare runs are zeros, wherever they are added
        owners = torch.arange(len(numels)).repeat_interleave(torch.tensor(runs, dtype=torch.int64))
        self.owners = torch.cat([owners, owners.new_zeros(spare)]).view(ranks, -1)
        """Which parameter each run is of, by the rank that takes it."""

    @staticmethod
    @functools.lru_cache(maxsize=16)
    def of(numels: tuple[int, ...], ranks: int) -> Places:
        """Return the same for the same parameters."""
        return Places(numels, ranks)


class Conflict(Probe):
    """Inner products between the gradients of the halves of all tasks, parameter by parameter."""

    name = "conflict"

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.tasks = trainer.data.train.tasks
        self.alone = collectives.world_size() == 1
        self.share = 1 / collectives.world_size()
        """A micro-batch's loss is its share of the step's, times the ranks: gradients are averaged."""
        self.watch = contextlib.ExitStack()
        self.gradients = torch.zeros(0)
        """Of each task what this rank has of its half of it, fp32, (tasks, elements); alone, of each half."""
        self.parts: list[tuple[Tensor, ...]] = []
        """The same by parameter."""
        self.targets = np.zeros(0)
        """Of each half of each task, (2 tasks,)."""
        self.batches = np.zeros(0, np.int64)
        """Micro-batches of each task so far."""
        self.places, self.row = Places((), 1), 0

    @staticmethod
    def applies(trainer: Trainer) -> bool:
        """Return whether the run puts its tasks through by themselves."""
        return compares_tasks(trainer)

    def before_forward(self) -> None:
        """Make room for the gradients of this step."""
        under, tasks = self.trainer.engine, len(self.tasks)
        numels = tuple(under.numels[name] for name, _ in under.active)
        self.places = Places.of(numels, collectives.world_size())
        rows = HALVES * tasks if self.alone else tasks
        self.gradients = torch.zeros(rows, self.places.length, device=collectives.device())
        self.parts = [row.split(self.places.sizes)[:-1:2] for row in self.gradients]
        self.targets, self.batches = np.zeros(HALVES * tasks), np.zeros(tasks, np.int64)
        self.watch = under.watch_gradients(self._see)

    def before_micro_batch(self, rows: list[Row]) -> None:
        """Note whose gradients come next."""
        if not rows:  # another rank has rows of this task: zeros come
            return
        task = self.tasks.index(rows[0].task)
        number = HALVES * task + int(self.batches[task] if self.alone else collectives.rank()) % HALVES
        self.batches[task] += 1
        self.row = number if self.alone else task
        self.targets[number] += sum(map(self.trainer.loss.targets, rows))

    def _see(self, number: int, gradient: Tensor) -> None:
        self.parts[self.row][number].add_(gradient.reshape(-1)[:: self.places.stride], alpha=self.share)

    def before_update(self) -> Sums:
        """Return the products of this rank's share of the elements, and the halves' targets below."""
        self.watch.close()
        names = [name for name, _ in self.trainer.engine.active]
        halves = self._halves()
        rows = len(halves)
        own = torch.zeros(len(names) + 1, rows, rows, dtype=torch.float64, device=halves.device)
        runs = halves.view(rows, -1, RUN)
        products = torch.bmm(runs.transpose(0, 1), runs.permute(1, 2, 0))
        own.index_add_(0, collectives.to_device(self.places.owners[collectives.rank()]), products.double())
        own[-1, 0] = collectives.to_device(torch.from_numpy(self.targets))
        table = partial(_table, Levels.of(tuple(names)), self.tasks, 1 / self.places.stride)
        return Sums(own, table, partial(_scalars, self.tasks))

    def _halves(self) -> Tensor:
        """Return this rank's share of the elements of the halves of all tasks, (2 tasks, elements)."""
        own, self.gradients, self.parts = self.gradients, torch.zeros(0), []
        if self.alone:
            return own
        of_ranks = collectives.shares_of_ranks(own)
        return torch.stack([of_ranks[half::HALVES].sum(dim=0) for half in range(HALVES)], dim=1).flatten(0, 1)


def products(grams: np.ndarray, targets: np.ndarray, step_targets: float) -> np.ndarray:
    """Return inner products of gradients of means over targets, (..., 2 tasks, 2 tasks); NaN of no rows.

    ``grams`` are those of the halves' shares in the gradient of the step's mean.
    """
    with np.errstate(divide="ignore"):
        scale = np.where(targets > 0, step_targets / targets, np.nan)
    return np.asarray(grams * np.outer(scale, scale))


def agreement(gram: np.ndarray, first: int, second: int) -> tuple[np.ndarray, ...]:
    """Return <G_i, G_j>, |G_i|², |G_j|² and the squares with their noise, of tasks i and j, each (...,)."""
    i, j = (slice(HALVES * task, HALVES * (task + 1)) for task in (first, second))
    inner = gram[..., i, j].mean(axis=(-2, -1))
    squares = [gram[..., part, part][..., 0, 1] for part in (i, j)]
    observed = [gram[..., part, part].mean(axis=(-2, -1)) for part in (i, j)]
    return (inner, *squares, *observed)


def _table(levels: Levels, tasks: tuple[str, ...], share: float, totals: np.ndarray) -> Columns:
    targets = totals[-1, 0]
    gram = products(levels.sums(totals[:-1]), targets, targets.sum())
    count, pairs = len(gram), [*itertools.combinations(range(len(tasks)), 2)]
    found = [np.stack(agreement(gram, i, j)) for i, j in pairs]
    columns = {title: np.tile(values, len(pairs)) for title, values in levels.columns.items()}
    columns |= dict(zip(COLUMNS, np.concatenate(found, axis=1), strict=True))
    first, second = (np.repeat([tasks[pair[side]] for pair in pairs], count) for side in (0, 1))
    return {**columns, "task": first, "other_task": second, "share": share}


COLUMNS = ("inner_product", "square", "other_square", "observed_square", "other_observed_square")


def _scalars(tasks: tuple[str, ...], totals: np.ndarray) -> dict[str, float]:
    targets = totals[-1, 0]
    gram = products(totals[:-1].sum(axis=0), targets, targets.sum())
    told = {}
    for i, j in itertools.combinations(range(len(tasks)), 2):
        inner, _, _, *observed = agreement(gram, i, j)
        told[f"cosine_observed/{tasks[i]}~{tasks[j]}"] = float(inner / np.sqrt(np.prod(observed)))
    return {name: value for name, value in told.items() if np.isfinite(value)}


PROBE = Conflict
