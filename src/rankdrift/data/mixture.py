"""Which rows make a step, of one task or of several that are mixed.

The order of rows is a function of seed and step alone: it is the same on any number of ranks, and resuming at
a step needs no saved state and no replay. It goes by blocks of as many rows as the tasks have together (or as
their caps leave). A block has of every task its exact share, in an order that is drawn; a task's rows are
taken permutation after permutation of its own, so that no row comes a second time before all have come once.

With shares in proportion to rows a block is an epoch: every row once. Otherwise p ~ n^(1/T) (the temperature
of arXiv 1907.05019), or p as it is given; caps are those of arXiv 1910.10683, section 3.5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from rankdrift.errors import UserError
from rankdrift.spec import MixtureSpec


class Mixture:
    """The row numbers of every global batch.

    Parameters
    ----------
    sizes
        Task -> rows. They are numbered task after task, in this order.
    global_batch
        Rows of a step.
    seed
        Of the order.
    settings
        Shares and caps.

    Raises
    ------
    UserError
        If the share of a task is so small that it would never be trained on.

    """

    def __init__(
        self, sizes: Mapping[str, int], global_batch: int, seed: int, settings: MixtureSpec | None = None
    ) -> None:
        settings = settings or MixtureSpec()
        self.tasks, self.global_batch, self.seed = tuple(sizes), global_batch, seed
        starts = np.cumsum([0, *sizes.values()])
        self._rows = [
            int(start) + _spread(sizes[task], _cap(settings, task))
            for task, start in zip(self.tasks, starts, strict=False)
        ]
        """Of each task the numbers of its rows that are in the mixture."""
        self.kept = np.array([len(rows) for rows in self._rows])
        """Rows of each task in the mixture, shape (tasks,)."""
        self.probabilities = shares(self.tasks, self.kept, settings)
        """Share of each task, shape (tasks,), adding up to 1."""
        self.block = int(self.kept.sum())
        """Rows of a block."""
        self.quotas = largest_remainder(self.block, self.probabilities)
        """Rows of each task in a block, shape (tasks,)."""
        for task, quota in zip(self.tasks, self.quotas, strict=True):
            if not quota:
                raise UserError(
                    f"data.mixture leaves task '{task}' none of a block of {self.block} rows: raise its "
                    "weight, lower data.mixture.temperature, or leave it out"
                )
        self._block = lru_cache(maxsize=2)(self._drawn)

    def rows(self, step: int) -> np.ndarray:
        """Return the row numbers of optimizer step ``step`` (0-based): shape (global_batch,), int64."""
        position, end = step * self.global_batch, (step + 1) * self.global_batch
        pieces = []
        while position < end:
            number, first = divmod(position, self.block)
            pieces.append(self._block(number)[first : first + end - position])
            position += len(pieces[-1])
        return np.concatenate(pieces)

    def seen(self, steps: int, values: np.ndarray | None = None) -> np.ndarray:
        """Return each task's sum of a value over the rows of the first so many steps, exactly.

        Parameters
        ----------
        steps
            Optimizer steps that are done.
        values
            A whole number a row (its tokens), indexed by row number; by default 1, which counts rows.

        Returns
        -------
        np.ndarray
            Shape (tasks,), int64.

        """
        number, first = divmod(steps * self.global_batch, self.block)
        begun = self._block(number)[:first]
        sums = []
        for task, rows in enumerate(self._rows):
            of_rows = np.ones(len(rows), np.int64) if values is None else values[rows]
            epochs, rest = divmod(number * int(self.quotas[task]), len(rows))
            whole = epochs * of_rows.sum()
            if rest:
                whole += of_rows[self._permutation(task, epochs)[:rest]].sum()
            mine = begun[(begun >= rows[0]) & (begun <= rows[-1])]
            sums.append(int(whole) + int(len(mine) if values is None else values[mine].sum()))
        return np.array(sums, np.int64)

    def _drawn(self, number: int) -> np.ndarray:
        """Return the row numbers of a block, in their order."""
        order = np.random.default_rng([self.seed, number]).permutation(self.block)
        if np.array_equal(self.quotas, self.kept):  # an epoch: the order is that of the rows themselves
            block = np.concatenate(self._rows)[order]
        else:
            tasks = np.repeat(np.arange(len(self.tasks)), self.quotas)[order]
            block = np.empty(self.block, np.int64)
            for task, quota in enumerate(self.quotas):
                block[tasks == task] = self._draws(task, number * int(quota), int(quota))
        block.setflags(write=False)
        return block

    def _draws(self, task: int, first: int, count: int) -> np.ndarray:
        """Return the row numbers of a task's draws ``first``, ``first + 1``, ..."""
        size = int(self.kept[task])
        epochs = range(first // size, -(-(first + count) // size))
        drawn = np.concatenate(
            [np.empty(0, np.int64), *(self._permutation(task, epoch) for epoch in epochs)]
        ).astype(np.int64)
        skipped = first - (first // size) * size
        return self._rows[task][drawn[skipped : skipped + count]]

    def _permutation(self, task: int, epoch: int) -> np.ndarray:
        # a zero at the end of a seed changes nothing, so that tasks count from one
        return np.random.default_rng([self.seed, epoch, task + 1]).permutation(int(self.kept[task]))


def shares(tasks: Sequence[str], sizes: np.ndarray, settings: MixtureSpec) -> np.ndarray:
    """Return each task's share of the rows that are trained on, shape (tasks,), adding up to 1."""
    if settings.weights == "balanced":
        unnormalised = np.ones(len(tasks))
    elif settings.weights is not None:
        unnormalised = np.array([settings.weights[task] for task in tasks])
    else:
        # of numbers up to 1, whose powers are finite at any temperature
        unnormalised = (sizes / sizes.max()) ** (1 / settings.temperature)
    return unnormalised / unnormalised.sum()


def largest_remainder(total: int, probabilities: np.ndarray) -> np.ndarray:
    """Return whole numbers that add up to ``total`` and are nearest to ``total * probabilities``.

    Each is rounded down; what is missing goes to the largest remainders, of equal ones to the first.

    >>> largest_remainder(10, np.array([0.25, 0.25, 0.5])).tolist()
    [3, 2, 5]
    """
    exact = total * probabilities
    floors = np.floor(exact)
    missing = total - int(floors.sum())
    floors[np.argsort(floors - exact, kind="stable")[:missing]] += 1
    return floors.astype(np.int64)


def _cap(settings: MixtureSpec, task: str) -> int | None:
    return settings.caps.get(task) if isinstance(settings.caps, dict) else settings.caps


def _spread(size: int, cap: int | None) -> np.ndarray:
    """Return at most ``cap`` of the numbers below ``size``, evenly spaced: files may be sorted."""
    kept = size if cap is None else min(size, cap)
    return np.arange(kept, dtype=np.int64) * size // kept
