"""Quantiles and ratios of samples that were taken in rounds, with intervals that resample whole rounds.

Samples of one round are measured in the same seconds, on a machine as it is then: they are not independent,
rounds nearly are. So rounds are drawn (cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8), for both sides of a ratio the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1999
"""Bootstrap samples."""
MIN_ROUNDS = 8
"""Fewer rounds are not resampled: of fewer, an interval of 95 % holds much less."""
MEMORY = 2**22
"""Values of one array that are in memory at once."""
Interval = tuple[float, float]
NONE: Interval = (float("nan"), float("nan"))


def quantiles(values: ArrayLike, shares: Sequence[float]) -> NDArray[np.float64]:
    """Return the values below or at which so large a share lies (NumPy's ``inverted_cdf``)."""
    return np.quantile(np.asarray(values, dtype=np.float64), shares, method="inverted_cdf")


def interval_of_quantile(values: ArrayLike, rounds: ArrayLike, share: float, seed: int = 0) -> Interval:
    """Return the 95 % percentile interval of a quantile; NaN of fewer than MIN_ROUNDS rounds.

    Parameters
    ----------
    values
        (samples,).
    rounds
        (samples,) the round of each.
    share
        Which quantile, from 0 to 1.
    seed
        Of the resampling.

    """
    names = np.unique(np.asarray(rounds))
    if len(names) < MIN_ROUNDS:
        return NONE
    return _ends(_drawn(values, rounds, names, share, seed))


def ratio_of_medians(
    one: tuple[ArrayLike, ArrayLike], other: tuple[ArrayLike, ArrayLike], seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of two medians and its 95 % percentile interval.

    Each side is its values and their rounds; the ends are NaN where the two have fewer than MIN_ROUNDS rounds
    in common.
    """
    value = float(quantiles(one[0], [0.5])[0] / quantiles(other[0], [0.5])[0])
    names = np.intersect1d(np.asarray(one[1]), np.asarray(other[1]))
    if len(names) < MIN_ROUNDS:
        return (value, *NONE)
    found = [_drawn(values, rounds, names, 0.5, seed) for values, rounds in (one, other)]
    return (value, *_ends(found[0] / found[1]))


def _ends(drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _drawn(
    values: ArrayLike, rounds: ArrayLike, names: NDArray[np.generic], share: float, seed: int
) -> NDArray[np.float64]:
    """Return a quantile in each resample of the named rounds."""
    values, rounds = np.asarray(values, dtype=np.float64), np.asarray(rounds)
    known = np.isin(rounds, names)
    order = np.argsort(values[known], kind="stable")
    ordered, which = values[known][order], np.searchsorted(names, rounds[known][order])
    generator, count = np.random.default_rng(seed), len(names)
    times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    batch = max(1, MEMORY // len(ordered))
    parts = []
    for first in range(0, RESAMPLES, batch):
        below = np.cumsum(times[first : first + batch, which], axis=1)
        wanted = share * below[:, -1:]
        parts.append(ordered[np.argmax(below >= wanted - 1e-9, axis=1)])
    return np.concatenate(parts)
