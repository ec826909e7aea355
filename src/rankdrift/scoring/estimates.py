"""Values with their standard errors over items: the scored items stand for all that could have been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

GROUPS = 20
"""Groups of the jackknife: so many times is a metric computed for its error."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; None where it is undefined or not known."""

    value: float | None
    stderr: float | None = None
    higher_is_better: bool = True
    best: float | None = None
    """The value of perfect predictions, where there is one."""


def mean_stderr(values: ArrayLike, documents: ArrayLike | None = None) -> float | None:
    """Return the standard error of a mean over items; None for a single one (or a single document).

    Independent items: s / sqrt(n), which for values of 0 and 1 is the binomial sqrt(p (1 - p) / (n - 1))
    (arXiv 2411.00640). It is 0 where all items agree: a few items that are all wrong do not show that every
    item would be. Items that name their ``documents`` are clusters (``ratio_estimate``).
    """
    return ratio_estimate(values, np.ones(len(np.asarray(values))), documents)[1]


def ratio_estimate(
    sums: ArrayLike, counts: ArrayLike, documents: ArrayLike | None = None
) -> tuple[float, float | None]:
    """Return sum(sums) / sum(counts) and its standard error over clusters, None for a single one.

    Tokens of a window are not independent, nor are windows of a document: the clusters are the documents, or
    without any the items. With a cluster's residual e_c = sums_c - ratio x counts_c the error is
    sqrt(n / (n - 1) sum e_c²) / sum(counts), n the number of clusters (ratio estimator: Cochran, Sampling
    Techniques, 1977, chapter 6; clustered errors: arXiv 2411.00640).
    """
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if documents is not None:
        of = np.unique(np.asarray(documents), return_inverse=True)[1]
        totals = np.bincount(of, weights=totals).astype(np.float64)
        sizes = np.bincount(of, weights=sizes).astype(np.float64)
    ratio = float(totals.sum() / sizes.sum())
    n = len(totals)
    if n < 2:
        return ratio, None
    residuals = totals - ratio * sizes
    return ratio, math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(sizes.sum())


def jackknife_stderr(
    compute: Callable[[Sequence[Any], Sequence[Any]], float],
    predictions: Sequence[Any],
    answers: Sequence[Any],
    documents: Sequence[Any] | None = None,
) -> float | None:
    """Return the standard error of a metric that is no mean over items (BLEU, F1); None for a single cluster.

    Delete-a-group jackknife: clusters (documents, or items) are dealt out to at most GROUPS groups, and with
    the metric t_g of all items but a group's the error is sqrt((G - 1) / G sum (t_g - mean t)²) (Wolter,
    Introduction to Variance Estimation, 2007, section 4.2.2). None where a t_g is undefined.
    """
    named = documents if documents is not None else range(len(answers))
    numbers = np.unique(np.asarray(named), return_inverse=True)[1]
    shuffled = np.random.default_rng(0).permutation(numbers.max() + 1)
    groups = min(GROUPS, len(shuffled))
    if groups < 2:
        return None
    of = shuffled[numbers] % groups
    values = []
    for group in range(groups):
        kept = np.flatnonzero(of != group).tolist()
        values.append(compute([predictions[n] for n in kept], [answers[n] for n in kept]))
    spread = np.asarray(values) - np.mean(values)
    error = math.sqrt((groups - 1) / groups * float(spread @ spread))
    return error if math.isfinite(error) else None
