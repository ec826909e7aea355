"""How a run's rows fall into steps and micro-batches: tokens, epochs, what a rank takes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankdrift.data.batches import filled
from rankdrift.data.dataset import TrainingData

LOOKED_AT = 256
ROWS_OF_RANKS = 64
"""Steps whose micro-batches are made; of a longer run these are spread over all its steps."""
Cut = Callable[[int, int], list[np.ndarray]]
"""(step from 0, rank) -> the rank's micro-batches of row numbers."""


@dataclass(frozen=True)
class Batches:
    """What of its data a run uses."""

    ranks: int
    global_batch: int
    """Rows a step."""
    micro_batch: int
    """Most rows that a rank puts through the model at once."""
    accumulation: int
    """Most micro-batches of a step, of a rank."""
    steps: int
    rows: int
    """Training rows that there are."""
    tokens: int
    """Of all rows that are trained on, over the whole run."""
    at_once: tuple[tuple[int, int], ...]
    """Tokens, filling included, and places with logits of micro-batches: those that no other one exceeds."""

    @property
    def tokens_a_step(self) -> float:
        """The mean."""
        return self.tokens / self.steps

    @property
    def epochs(self) -> float:
        """How often a row is met, of all rows in the mean."""
        return self.steps * self.global_batch / self.rows


def batches_of(
    data: TrainingData, steps: int, ranks: int, packs: bool, makes_text: bool, cut: Cut
) -> Batches:
    """Return what a run of so many steps makes of its data.

    Parameters
    ----------
    data
        The rows and their order.
    steps
        Of the optimizer.
    ranks
        That share a step's rows.
    packs
        Whether rows lie end to end; else they are filled up to the longest.
    makes_text
        Whether logits are made at places in the rows (else once a row).
    cut
        How a step's rows are shared out.

    """
    # a step's rows are dealt out anew for every rank: of many there are enough in a few steps
    most = min(steps, max(8, LOOKED_AT * ROWS_OF_RANKS // (ranks * len(data.order.rows(0)))), LOOKED_AT)
    looked_at = np.unique(np.linspace(0, steps - 1, most).astype(int))
    parts = [cut(int(step), rank) for step in looked_at for rank in range(ranks)]
    measured = {_measure(data, part, packs, makes_text) for of_rank in parts for part in of_rank}
    return Batches(
        ranks=ranks,
        global_batch=len(data.order.rows(0)),
        micro_batch=max(len(part) for of_rank in parts for part in of_rank),
        accumulation=max(map(len, parts)),
        steps=steps,
        rows=len(data.train),
        tokens=int(data.order.seen(steps, data.lengths).sum()),
        at_once=tuple(sorted(_largest(measured))),
    )


def _measure(data: TrainingData, part: np.ndarray, packs: bool, makes_text: bool) -> tuple[int, int]:
    """Return the tokens of a micro-batch, filling included, and the places that logits are made at."""
    lengths = data.lengths[part]
    tokens = int(lengths.sum()) if packs else int(lengths.max()) * len(part)
    if not makes_text:
        return tokens, len(part)
    if packs:
        return tokens, int(data.terms[part].sum())
    columns = filled([data.train[int(row)] for row in part], data.pad_id).predicting
    return tokens, len(columns) * len(part)


def _largest(measured: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the pairs that no other pair is at least as large as in both."""
    return [
        one
        for one in measured
        if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in measured)
    ]
