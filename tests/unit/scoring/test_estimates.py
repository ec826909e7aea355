"""Standard errors against closed forms, SciPy and the jackknife."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import sem

from rankdrift.scoring.estimates import mean_stderr, ratio_estimate


def test_mean_of_zeros_and_ones_is_binomial():
    values = [1.0] * 30 + [0.0] * 10
    assert mean_stderr(values) == pytest.approx(math.sqrt(0.75 * 0.25 / 39))


def test_mean_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_stderr(values.tolist()) == pytest.approx(sem(values))


def test_ratio_with_equal_counts_is_the_mean_of_the_windows():
    sums = np.random.default_rng(1).normal(300, 30, size=40)
    value, stderr = ratio_estimate(sums, np.full(40, 100))
    assert (value, stderr) == pytest.approx((sums.mean() / 100, sem(sums / 100)))


def test_ratio_with_unequal_counts_is_near_the_jackknife():
    rng = np.random.default_rng(2)
    counts = rng.integers(20, 128, size=200)
    sums = counts * rng.normal(3, 0.5, size=200)
    value, stderr = ratio_estimate(sums, counts)
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = math.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    assert value == pytest.approx(sums.sum() / counts.sum())
    assert stderr == pytest.approx(jackknife, rel=0.02)


def test_a_single_item_has_no_error():
    assert mean_stderr([1.0]) is None
    assert ratio_estimate([3.0], [2]) == (1.5, None)


def test_items_of_one_document_are_one_cluster():
    """Copies of an item add nothing: n copies of each have the error of one each."""
    rng = np.random.default_rng(3)
    values, counts = rng.normal(size=30), rng.integers(20, 128, size=30)
    documents = np.arange(30).repeat(4)
    assert mean_stderr(values.repeat(4), documents) == pytest.approx(sem(values))
    assert mean_stderr(values.repeat(4)) == pytest.approx(sem(values) / 2, rel=0.02)
    assert ratio_estimate((values * counts).repeat(4), counts.repeat(4), documents) == pytest.approx(
        ratio_estimate(values * counts, counts)
    )


def test_the_error_of_clustered_items_is_what_simulation_gives():
    """Half of the variance common to a document of 8 items: the naive error is less than half of it."""
    rng = np.random.default_rng(4)
    means, errors, naive = [], [], []
    documents = np.arange(25).repeat(8)
    for _ in range(400):
        values = rng.normal(size=25).repeat(8) + rng.normal(size=200)
        means.append(values.mean())
        errors.append(mean_stderr(values, documents))
        naive.append(mean_stderr(values))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(naive) < 0.5 * np.std(means)
