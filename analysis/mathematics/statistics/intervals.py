"""Uncertainty of what the report states: intervals over seeds, paired tests over items.

Layers and matrices of one model are not independent replicates: nothing here is meant for values over layers,
and no p-value of this project has their number as its n.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from rankdrift.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its confidence interval, or the reason why there is none."""

    mean: float
    n: int
    """Seeds."""
    low: float | None
    high: float | None
    reason: str = ""
    """Why low and high are None."""


@dataclass(frozen=True)
class SeedDifference:
    """Mean over seeds of (second - first), each pair of one seed and one order of the data."""

    interval: Interval
    stdev: float | None
    """Standard deviation of the differences, n - 1 in its denominator; None for one seed."""
    p_value: float | None
    """Two-sided, of Student's paired t test; None where the interval has a reason."""


@dataclass(frozen=True)
class McNemar:
    """Items on which exactly one of two models is right, and the exact two-sided p-value."""

    gained: int
    """Wrong by the first, right by the second."""
    lost: int
    """Right by the first, wrong by the second."""
    p_value: float


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return mean ± t_{(1+c)/2, n-1} s / sqrt(n) over seeds.

    Student's t and not a bootstrap: the percentile bootstrap of three seeds is no more than their range and
    covers 75 % where it says 95 % (benchmarks/interval_coverage.py). One seed has no interval, nor have seeds
    that all agree: an interval of width 0 would claim certainty.

    Raises
    ------
    UserError
        For no values at all, or values that are not finite.

    """
    observed = _finite("values over seeds", values)
    return _t_interval(observed, float(np.abs(observed).max()), confidence)


def paired_t_interval(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> SeedDifference:
    """Return the mean of second - first over seeds, its t interval and the p-value of the paired t test.

    What a seed does to both, through the order of its data and its initial values, cancels in the difference.

    Parameters
    ----------
    first, second
        (seeds,) one value a seed, in the same order of seeds.
    confidence
        Of the interval.

    Raises
    ------
    UserError
        If the two do not have the same number of seeds, or none.

    """
    a, b = _paired("seeds", first, second)
    differences = b - a
    interval = _t_interval(differences, float(np.abs([a, b]).max()), confidence)
    stdev = float(np.std(differences, ddof=1)) if interval.n > 1 else None
    if interval.reason:
        return SeedDifference(interval, stdev, None)
    t = interval.mean / _standard_error(differences)
    return SeedDifference(interval, stdev, float(2 * special.stdtr(interval.n - 1, -abs(t))))


@functools.cache
def t_quantile(n: float, confidence: float = 0.95) -> float:
    """Return how many standard errors of n independent parts (jackknife shards, seeds) are an interval.

    Student's with n - 1 degrees of freedom: 2.36 for eight parts where many have 1.96; infinite for one.
    """
    return float(stats.t.ppf((1 + confidence) / 2, n - 1)) if n > 1 else float("inf")


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Return McNemar's exact test: of the items on which two models differ, half should be gained by chance.

    With none on which they differ, p is 1.

    Raises
    ------
    UserError
        If the two do not have the same items, or a value is neither 0 nor 1.

    """
    a, b = (_right_or_wrong(values) for values in _paired("items", first, second))
    gained, lost = int(np.sum(~a & b)), int(np.sum(a & ~b))
    p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p_value)


def flip_test(
    first: ArrayLike, second: ArrayLike, documents: ArrayLike, draws: int = 9999, seed: int = 0
) -> float:
    """Return the two-sided p-value of "two models are alike" for items that come in documents.

    Were they alike, exchanging them in a whole document would change nothing: the sum of differences is
    compared with ``draws`` sums whose documents have random signs (a randomisation test; Dror et al., ACL
    2018, section 3). With each item a document of its own and values of 0 and 1 it is McNemar's test.
    """
    a, b = _paired("items", first, second)
    of = np.unique(np.asarray(documents), return_inverse=True)[1]
    sums = np.bincount(of, weights=b - a)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, len(sums)))
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) * (1 - 1e-12)
    return float((1 + np.count_nonzero(as_large)) / (1 + draws))


def _t_interval(observed: NDArray[np.float64], scale: float, confidence: float) -> Interval:
    """Return the t interval of values (n,) that were computed from numbers as large as ``scale``."""
    n, mean = len(observed), float(np.mean(observed))
    if n == 1:
        return Interval(mean, n, None, None, reason="one seed: no interval over seeds")
    if varies_by_rounding_alone(observed, scale):
        return Interval(mean, n, None, None, reason=f"all {n} seeds give the same value: no spread to go by")
    half = float(t_quantile(n, confidence) * _standard_error(observed))
    return Interval(mean, n, mean - half, mean + half)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def varies_by_rounding_alone(values: NDArray[np.float64], scale: float) -> bool:
    """Return whether values differ by no more than the rounding of numbers as large as ``scale``.

    .85 - .83 and .86 - .84 differ in their last digits: as a spread, that would make any test significant.
    """
    return bool(np.ptp(values) <= 8 * np.finfo(np.float64).eps * scale)


def _paired(
    what: str, first: ArrayLike, second: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _finite(f"first model's {what}", first), _finite(f"second model's {what}", second)
    if len(a) != len(b):
        raise UserError(f"paired comparison of {len(a)} and {len(b)} {what}; give both models the same")
    return a, b


def _right_or_wrong(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not np.isin(values, (0, 1)).all():
        raise UserError(f"McNemar's test is for right (1) or wrong (0), got {values.tolist()}")
    return values.astype(bool)


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise UserError(f"{name}: need one or more finite numbers, got {array.tolist()}")
    return array
