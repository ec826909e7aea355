"""Bootstrap intervals: over items that two models share, and over the arms of a study.

Not for seeds: three of them are too few to be resampled (see ``intervals.t_interval``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    pair = [(0, 1)]
    return paired_bootstraps([first, second], pair, weights, clusters, confidence, resamples, seed)[0]


def paired_bootstraps(
    values: Sequence[ArrayLike],
    pairs: Sequence[tuple[int, int]],
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[BootstrapInterval]:
    """Return ``paired_bootstrap`` of several pairs of models, all from the same draws of the items.

    What a draw sums to is found for each model once, by a product of matrices; a pair then costs no more than
    a sort, so that all pairs of a study are as quick as a few of them.

    Parameters
    ----------
    values
        (items,) values of the same items, of each model.
    pairs
        (first, second), places of models in ``values``.
    weights, clusters, confidence, resamples, seed
        As of ``paired_bootstrap``.

    Raises
    ------
    UserError
        As ``paired_bootstrap``.

    """
    totals = _cluster_totals(_items(values, weights), clusters)
    n = totals.shape[1]
    drawn = _drawn_sums(totals, resamples, seed) if n >= MIN_CLUSTERS else None
    return [_interval(totals, drawn, pair, confidence) for pair in pairs]


def _drawn_sums(totals: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return what each row of totals (rows, n) sums to in every draw of n of the n columns, (rows, draws)."""
    generator, n, parts = np.random.default_rng(seed), totals.shape[1], []
    batch = max(1, MEMORY // n)
    for first in range(0, resamples, batch):
        draws = min(batch, resamples - first)
        places = generator.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
        counts = np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n)
        parts.append(totals @ counts.T.astype(np.float64))
    return np.concatenate(parts, axis=1)


def _interval(
    totals: NDArray[np.float64],
    drawn: NDArray[np.float64] | None,
    pair: tuple[int, int],
    confidence: float,
) -> BootstrapInterval:
    """Return one pair's BCa interval; the last row of ``totals`` and ``drawn`` are the weights."""
    one, other, sizes = totals[pair[0]], totals[pair[1]], totals[-1]
    value, n = float((other - one).sum() / sizes.sum()), len(sizes)
    if drawn is None:
        return BootstrapInterval(value, n, None, None, reason=f"{n} to resample, fewer than {MIN_CLUSTERS}")
    largest = float(np.max(np.abs([one, other]) / sizes))
    if varies_by_rounding_alone((other - one) / sizes, largest):
        return BootstrapInterval(value, n, None, None, reason="the same difference in all: nothing varies")
    estimates = (drawn[pair[1]] - drawn[pair[0]]) / drawn[-1]
    left_out = ((other - one).sum() - (other - one)) / (sizes.sum() - sizes)
    low, high = np.quantile(estimates, _bca_shares(value, estimates, left_out, confidence))
    return BootstrapInterval(value, n, float(low), float(high))


def _bca_shares(
    value: float, estimates: NDArray[np.float64], left_out: NDArray[np.float64], confidence: float
) -> NDArray[np.float64]:
    """Return which quantiles of the estimates are the ends of the BCa interval (Efron 1987, section 5).

    The bias is the share of estimates below the value, ties by half; the acceleration that of the jackknife.
    """
    below = (np.count_nonzero(estimates < value) + np.count_nonzero(estimates <= value)) / 2
    bias = stats.norm.ppf(below / len(estimates))
    influence = left_out.mean() - left_out
    acceleration = np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5)
    z = bias + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    shares: NDArray[np.float64] = stats.norm.cdf(bias + z / (1 - acceleration * z))
    return shares


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


def _items(values: Sequence[ArrayLike], weights: ArrayLike | None) -> NDArray[np.float64]:
    """Return (models + 1, items): the models' values, and the weights."""
    rows = [np.asarray(of_model, dtype=np.float64) for of_model in values]
    rows.append(np.ones_like(rows[0]) if weights is None else np.asarray(weights, dtype=np.float64))
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1 or not lengths[0]:
        named = ", ".join(map(str, lengths[:-1]))
        raise UserError(f"paired bootstrap of {named} and {lengths[-1]} items; give the same items")
    items = np.stack(rows)
    if not np.isfinite(items).all() or (items[-1] <= 0).any():
        raise UserError("paired bootstrap: a value is not finite, or a weight not positive; score again")
    return items


def _cluster_totals(items: NDArray[np.float64], clusters: ArrayLike | None) -> NDArray[np.float64]:
    """Return (rows, clusters): the items' sums."""
    if clusters is None:
        return items
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    if len(which) != items.shape[1]:
        raise UserError(f"paired bootstrap of {items.shape[1]} items, but documents of {len(which)}")
    return np.stack([np.bincount(which, weights=row, minlength=len(names)) for row in items])
