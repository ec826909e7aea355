"""Intervals and paired tests against closed forms and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankdrift.analysis.intervals import (
    binomial_standard_error,
    mcnemar,
    paired_difference,
    standard_error,
    t_interval,
)
from rankdrift.errors import UserError


@pytest.mark.parametrize(("confidence", "t"), [(0.95, 4.302653), (0.9, 2.919986)])
def test_t_interval_of_three_seeds(confidence: float, t: float):
    got = t_interval([1.0, 2.0, 3.0], confidence)
    half = t / math.sqrt(3)  # s = 1; t from the tables for 2 degrees of freedom
    assert (got.mean, got.low, got.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-6)
    assert (got.n, got.reason) == (3, "")


def test_t_interval_covers_what_it_says():
    """5 seeds, 500 studies: coverage within three binomial standard errors of 95 %."""
    draws = np.random.default_rng(0).normal(size=(500, 5))
    found = [t_interval(seeds) for seeds in draws]
    covered = np.mean([each.low <= 0 <= each.high for each in found])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 500))


def test_one_seed_has_a_mean_and_a_reason_but_no_interval():
    got = t_interval([0.7])
    assert (got.mean, got.low, got.high) == (0.7, None, None)
    assert "one seed" in got.reason


def test_standard_errors_of_shares_and_means():
    right = np.array([1, 1, 1, 0])
    assert standard_error(right) == pytest.approx(0.5 / 2)  # s² = .25
    assert binomial_standard_error(0.75, 4) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_paired_difference_is_over_the_same_items():
    got = paired_difference([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 5.0, 5.0])
    assert got.mean == 1.0
    assert got.stderr == pytest.approx(math.sqrt(2 / 3) / 2)  # differences 1, 0, 2, 1
    assert got.n == 4


def test_mcnemar_counts_only_where_models_differ():
    first = [True] * 20 + [False] * 5 + [True] + [False] * 3
    second = [True] * 20 + [True] * 5 + [False] + [False] * 3
    got = mcnemar(first, second)
    assert (got.gained, got.lost) == (5, 1)
    assert got.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # P(at most 1 of 6), two-sided
    assert mcnemar(first, first).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "one or more finite numbers"),
        (lambda: t_interval([1.0, math.nan]), "one or more finite numbers"),
        (lambda: standard_error([1.0]), "at least two items"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 and 1 items"),
        (lambda: mcnemar([0.5], [1.0]), "right \\(1\\) or wrong \\(0\\)"),
        (lambda: binomial_standard_error(1.5, 10), "1.5 of 10"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message: str):
    with pytest.raises(UserError, match=message):
        call()
