"""Rows of random tokens with the lengths of real ones, for benchmarks where there is no data.

Speed does not depend on tokens, but on how long rows are, how different, and how many targets they have.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Lengths of a data set's rows, prompt and target: a gamma distribution."""

    mean: float
    """Tokens."""
    variation: float
    """Standard deviation over mean."""
    targets: int
    """Tokens of a row that carry loss."""


SHORTEST = 8
SPREADS = {"sst2": Spread(18.1, 0.52, 1), "squad": Spread(203.5, 0.39, 5)}
"""Of the first 1,000 training rows of SST-2 and SQuAD 2, as their tasks here prompt; SmolLM2's tokenizer."""
LENGTHS = ("fixed", *SPREADS)


def lengths_of(kind: str, longest: int, count: int) -> np.ndarray:
    """Return rows' lengths: all ``longest``, or spread as a data set's are, up to it."""
    if kind == "fixed":
        return np.full(count, longest)
    spread = SPREADS[kind]
    shape = spread.variation**-2
    drawn = np.random.default_rng(1).gamma(shape, spread.mean / shape, count)
    return np.clip(drawn.astype(int), SHORTEST, longest)


def made_rows(kind: str, lengths: np.ndarray, vocabulary: int) -> Any:
    """Return rows of random tokens; of fixed lengths the second half is the target."""
    from rankdrift.data.token_table import TaskTables, TokenTable
    from rankdrift.data.tokens import Row

    generator = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(lengths):
        targets = SPREADS[kind].targets if kind in SPREADS else length - length // 2
        ids = generator.integers(3, vocabulary, length, dtype=np.int32)
        rows.append(Row(ids, np.arange(length) >= length - targets, None, "random", number))
    return TaskTables([TokenTable.of_rows("random", rows)])


def with_rows(plan: Any, kind: str, longest: int, count: int, vocabulary: int) -> Any:
    """Return a run's set-up with so many such rows in the place of its own, in the order of its seed."""
    from rankdrift.data.mixture import Mixture

    lengths = lengths_of(kind, longest, count)
    rows = made_rows(kind, lengths, vocabulary)
    order = Mixture(rows.sizes, plan.spec.training.global_batch, plan.spec.seed)
    data = dataclasses.replace(plan.data, train=rows, order=order, lengths=lengths, terms=rows.targets)
    return dataclasses.replace(plan, data=data)
