"""Values with their standard errors over items: the scored items stand for all that could have been drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; None where it is undefined or not known."""

    value: float | None
    stderr: float | None = None
    higher_is_better: bool = True


def mean_stderr(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean of independent items, s / sqrt(n); None for a single item.

    For values of 0 and 1 this is the binomial sqrt(p (1 - p) / (n - 1)) (arXiv 2411.00640).
    It is 0 where all items agree: a few items that are all wrong do not show that every item would be.
    """
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def ratio_estimate(sums: ArrayLike, counts: ArrayLike) -> tuple[float, float | None]:
    """Return sum(sums) / sum(counts) and its standard error over clusters, None for a single one.

    A window's tokens are not independent, windows nearly are: with residuals e_i = sums_i - ratio x counts_i
    the error is sqrt(n / (n - 1) sum e_i²) / sum(counts) (ratio estimator: Cochran, Sampling Techniques,
    1977, chapter 6; clustered errors: arXiv 2411.00640).
    """
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    ratio = float(totals.sum() / sizes.sum())
    n = len(totals)
    if n < 2:
        return ratio, None
    residuals = totals - ratio * sizes
    return ratio, math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(sizes.sum())
