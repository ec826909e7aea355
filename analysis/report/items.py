"""Differences between two checkpoints over the items that both were scored on, with their standard errors.

Pairing removes what makes an item hard for both models, and much of the variance (arXiv 2411.00640).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from rankdrift import records
from rankdrift.analysis.observations import BASE, GENERAL_TEXT
from rankdrift.analysis.statistics.intervals import paired_difference
from rankdrift.layout import RunLayout, StudyLayout


@dataclass(frozen=True)
class Change:
    """A difference between two checkpoints and what its standard error rests on."""

    value: float
    stderr: float | None
    evidence: str
    """For instance "paired over 400 items"."""

    @property
    def clear(self) -> bool | None:
        """Whether it exceeds 1.96 standard errors; None where no standard error is known."""
        return None if self.stderr is None else abs(self.value) > 1.96 * self.stderr


def paired_change(
    layout: StudyLayout, task: str, metric: str, first: tuple[str, int], second: tuple[str, int]
) -> Change | None:
    """Return second - first of a metric over shared items, or None where the metric has no value per item.

    ``first`` and ``second`` are (run, step); the run ``base`` is the base model at step 0. Per-item tables
    have ``index`` and a column a metric; those of general text hold sums over each window's ``tokens``.
    """
    items = [_items(layout, task, *checkpoint) for checkpoint in (first, second)]
    if items[0] is None or items[1] is None:
        return None
    joined = items[0].merge(items[1], on="index", suffixes=("_first", "_second"))
    if len(joined) < 2:
        return None
    if task == GENERAL_TEXT:
        return _per_token(joined, metric)
    if f"{metric}_first" not in joined:
        return None
    change = paired_difference(*(joined[f"{metric}_{side}"].tolist() for side in ("first", "second")))
    return Change(change.mean, change.stderr, f"paired over {change.n} items")


def _per_token(joined: pd.DataFrame, metric: str) -> Change:
    """Return the change of a sum per token over windows of text, by the ratio estimator.

    With differences d, tokens t and ratio R = sum d / sum t, the standard error is
    sqrt(n / (n - 1) sum (d - R t)^2) / sum t (Cochran, Sampling Techniques, 1977, section 6.3).
    """
    difference = joined[f"{metric}_second"] - joined[f"{metric}_first"]
    tokens, n = joined["tokens_first"], len(joined)
    ratio = float(difference.sum() / tokens.sum())
    squares = float(((difference - ratio * tokens) ** 2).sum())
    return Change(ratio, math.sqrt(n / (n - 1) * squares) / float(tokens.sum()), f"paired over {n} windows")


def _items(layout: StudyLayout, task: str, run: str, step: int) -> pd.DataFrame | None:
    scored = RunLayout(layout.base) if run == BASE else layout.run(run)
    path = scored.score_items(step, task)
    return records.read_table(path) if path.exists() else None
