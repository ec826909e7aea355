"""Values with their standard errors over items: the scored items stand for all that could have been drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; None where it is undefined or not known."""

    value: float | None
    stderr: float | None = None
    higher_is_better: bool = True


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
