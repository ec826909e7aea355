"""Bootstrap intervals: over items that two models share, and over the arms of a study.

Not for seeds: three of them are too few to be resampled (see ``intervals.t_interval``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rankdrift.analysis.mathematics.statistics.intervals import varies_by_rounding_alone
from rankdrift.errors import UserError

RESAMPLES = 9999
"""Bootstrap samples of items."""
ARM_RESAMPLES = 1999
"""Bootstrap samples of arms."""
MIN_CLUSTERS = 10
"""Fewer items or documents than this are not resampled."""
MIN_ARMS = 5
"""Fewer arms than this are not resampled."""
MAX_UNDEFINED = 0.01
"""Share of the resamples in which a statistic may be undefined before its interval is refused."""
MEMORY = 2**22
"""Values of one array that are in memory at once."""

Statistic = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]
"""(rows (n, columns), counts (draws, n): how often each row is drawn) -> (draws,), NaN where undefined."""


@dataclass(frozen=True)
class BootstrapInterval:
    """A statistic with its bootstrap interval, or the reason why there is none."""

    value: float
    n: int
    """What was resampled: items, documents or arms."""
    low: float | None
    high: float | None
    reason: str = ""
    """Why low and high are None."""


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> BootstrapInterval:
    """Return sum(second - first) / sum(weights) over items with its BCa interval, items kept in pairs.

    BCa (Efron 1987, JASA 82) corrects the bias and skewness that a percentile interval ignores. Items of one
    document are not independent: given ``clusters``, whole documents are drawn (arXiv 2411.00640).

    Parameters
    ----------
    first, second
        (items,) values of the same items by two models: a score, or a sum over the item's tokens.
    weights
        (items,) what the sums are divided by: tokens. Without it, 1 an item, so that the value is a mean.
    clusters
        (items,) names of the documents the items are from.
    confidence
        Of the interval.
    resamples
        Bootstrap samples.
    seed
        Of the resampling.

    Raises
    ------
    UserError
        If the arrays are not of one length, hold values that are not finite, or the weights are not positive.

    """
    totals = _cluster_totals(_items(first, second, weights), clusters)
    one, other, sizes = totals
    value, n = float(_ratio(one, other, sizes, axis=-1)), len(sizes)
    if n < MIN_CLUSTERS:
        return BootstrapInterval(value, n, None, None, reason=f"{n} to resample, fewer than {MIN_CLUSTERS}")
    largest = float(np.max(np.abs([one, other]) / sizes))
    if varies_by_rounding_alone((other - one) / sizes, largest):
        return BootstrapInterval(value, n, None, None, reason="the same difference in all: nothing varies")
    found = stats.bootstrap(
        (one, other, sizes),
        _ratio,
        paired=True,
        vectorized=True,
        method="BCa",
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, MEMORY // n),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return BootstrapInterval(value, n, float(found.low), float(found.high))


def cluster_bootstrap(
    statistic: Statistic,
    rows: NDArray[np.float64],
    clusters: ArrayLike,
    confidence: float = 0.95,
    resamples: int = ARM_RESAMPLES,
    seed: int = 0,
) -> BootstrapInterval:
    """Return a statistic of checkpoints with the percentile interval of resampled clusters.

    Checkpoints of one run are not independent, nor are runs of one arm: whole clusters are drawn (cluster
    bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Of few
    clusters it is somewhat too narrow: benchmarks/interval_coverage.py says by how much.

    Parameters
    ----------
    statistic
        Of the rows, for many draws at once.
    rows
        (checkpoints, columns).
    clusters
        (checkpoints,) the cluster of each, its arm say.
    confidence
        Of the interval.
    resamples
        Bootstrap samples.
    seed
        Of the resampling.

    """
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    value, n = float(statistic(rows, np.ones((1, len(rows)), dtype=np.int64))[0]), len(names)
    if not np.isfinite(value):
        return BootstrapInterval(value, n, None, None, reason="undefined: a constant, or too few checkpoints")
    if n < MIN_ARMS:
        return BootstrapInterval(value, n, None, None, reason=f"{n} arms, fewer than {MIN_ARMS}")
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    found = statistic(rows, drawn[:, which])
    undefined = float(np.mean(~np.isfinite(found)))
    if undefined > MAX_UNDEFINED:
        return BootstrapInterval(
            value, n, None, None, reason=f"undefined in {100 * undefined:.0f} % of the resamples of arms"
        )
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return BootstrapInterval(value, n, float(low), float(high))


def _items(first: ArrayLike, second: ArrayLike, weights: ArrayLike | None) -> NDArray[np.float64]:
    """Return (3, items): first, second, weights."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    w = np.ones_like(a) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(a) == len(b) == len(w) or not len(a):
        raise UserError(f"paired bootstrap of {len(a)}, {len(b)} and {len(w)} items; give the same items")
    items = np.stack([a, b, w])
    if not np.isfinite(items).all() or (w <= 0).any():
        raise UserError("paired bootstrap: a value is not finite, or a weight not positive; score again")
    return items


def _cluster_totals(items: NDArray[np.float64], clusters: ArrayLike | None) -> NDArray[np.float64]:
    """Return (3, clusters): the items' sums."""
    if clusters is None:
        return items
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    if len(which) != items.shape[1]:
        raise UserError(f"paired bootstrap of {items.shape[1]} items, but documents of {len(which)}")
    return np.stack([np.bincount(which, weights=values, minlength=len(names)) for values in items])


def _ratio(
    first: NDArray[np.float64], second: NDArray[np.float64], weights: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Return sum(second - first) / sum(weights) along an axis."""
    result: NDArray[np.float64] = np.sum(second - first, axis=axis) / np.sum(weights, axis=axis)
    return result
