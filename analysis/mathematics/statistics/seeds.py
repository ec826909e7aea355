"""Few seeds, many questions: multiplicity, what a study could have seen, and what a seed alone does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from rankdrift.errors import UserError


@dataclass(frozen=True)
class SeedControl:
    """How much two seeds of one arm differ: the size of a difference that means nothing."""

    pairs: int
    """Pairs of seeds of one arm, over the arms."""
    median: float | None
    """Median |difference| of such a pair; None without a pair."""
    largest: float | None
    """Largest |difference| of such a pair; None without a pair."""
    share: float | None
    """Share of the pairs that differ by at least what is asked about; None without a pair."""
    reason: str = ""
    """Why the others are None."""


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's step-down adjusted p-values, in the order given.

    Scandinavian Journal of Statistics 6 (1979), 65-70. Of m p-values sorted ascending, the i-th becomes the
    maximum over j <= i of min(1, (m - j + 1) p_j). Rejecting those at most alpha has a family-wise error of
    at most alpha, whatever the dependence among the tests.

    Raises
    ------
    UserError
        If a value is no probability.

    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError(f"Holm's correction takes p-values in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


@functools.cache  # a study asks for the same few numbers of seeds again and again
def minimum_detectable_difference(seeds: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the mean difference, in standard deviations of the differences, that a paired t test detects.

    The delta at which a two-sided test at ``alpha`` rejects with probability ``power``:
    P(|t'_{n-1}(sqrt(n) delta)| > t_{1-alpha/2, n-1}) = power, t' the noncentral t. Computed is its square, a
    noncentral F, which stays accurate where n is 2.

    Raises
    ------
    UserError
        For fewer than two seeds, or a power that is not between alpha and 1.

    """
    if seeds < 2:
        raise UserError(f"a paired t test needs at least two seeds, got {seeds}; train more seeds")
    if not alpha < power < 1:
        raise UserError(f"power must lie between alpha = {alpha} and 1, got {power}")
    critical = stats.f.isf(alpha, 1, seeds - 1)

    def missing_power(delta: float) -> float:
        return float(stats.ncf.sf(critical, 1, seeds - 1, seeds * delta**2)) - power

    return float(optimize.brentq(missing_power, 1e-6, 1e3 / math.sqrt(seeds)))


def stdev_interval(stdev: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a standard deviation that n normal values gave (n - 1 degrees of freedom).

    (n - 1) s² / sigma² is chi-squared with n - 1 degrees: of three seeds the interval runs from 0.52 to 6.3
    times s, so what is computed from s alone is known no better.
    """
    low, high = _stdev_factors(n, level)
    return stdev * low, stdev * high


@functools.cache
def _stdev_factors(n: int, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = (math.sqrt((n - 1) / stats.chi2.ppf(share, n - 1)) for share in (1 - tail, tail))
    return low, high


def seed_control(arms: Sequence[ArrayLike], difference: float) -> SeedControl:
    """Return how a difference between arms compares with those between seeds of one arm: a negative control.

    The control speaks of single seeds, whose difference varies more than that of two means over seeds; a
    difference of means below ``median`` has therefore not been told apart from a change of the seed.

    Parameters
    ----------
    arms
        For each arm, (seeds,) its values.
    difference
        Between the arms, in the same unit.

    """
    found = np.array([abs(a - b) for arm in arms for a, b in itertools.combinations(np.asarray(arm), 2)])
    if not len(found):
        return SeedControl(0, None, None, None, reason="no arm has two seeds: no negative control")
    share = float(np.mean(found >= abs(difference)))
    return SeedControl(len(found), float(np.median(found)), float(found.max()), share)
