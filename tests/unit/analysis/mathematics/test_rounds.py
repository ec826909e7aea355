"""Quantiles of samples in rounds: equal to NumPy's, with intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from rankdrift.analysis.mathematics.statistics import rounds
from rankdrift.analysis.mathematics.statistics.rounds import (
    interval_of_quantile,
    quantiles,
    ratio_of_medians,
)


def drawn(
    generator: np.random.Generator, count: int, each: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Samples whose rounds differ by a spread, around a median of 1."""
    names = np.repeat(np.arange(count), each)
    of_round = generator.normal(0, spread, count)[names]
    return np.exp(of_round + generator.normal(0, 0.05, count * each)), names


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(0).gamma(2, size=101)
    assert quantiles(values, [0.5])[0] == np.median(values)
    assert quantiles([3.0, 1.0, 2.0], [0.34, 1.0]).tolist() == [2.0, 3.0]


def test_a_resample_is_that_of_the_rounds_written_out() -> None:
    values, names = drawn(np.random.default_rng(1), 9, 5, 0.3)
    found = rounds._drawn(values, names, np.unique(names), 0.9, seed=4)
    times = np.random.default_rng(4).multinomial(9, np.full(9, 1 / 9), size=rounds.RESAMPLES)
    for draw in (0, 7, 1998):
        written_out = np.concatenate([np.tile(values[names == n], times[draw, n]) for n in range(9)])
        assert found[draw] == np.quantile(written_out, 0.9, method="inverted_cdf")


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, names = drawn(np.random.default_rng(2), 10, 7, 0.1)
    whole = interval_of_quantile(values, names, 0.5)
    monkeypatch.setattr(rounds, "MEMORY", 1000)
    assert interval_of_quantile(values, names, 0.5) == whole


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 20 rounds; resampling samples as if they were independent would hold it in a third of the cases."""
    generator, hits, repeats = np.random.default_rng(3), 0, 200
    for _ in range(repeats):
        low, high = interval_of_quantile(*drawn(generator, 20, 8, 0.2), 0.5)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / repeats <= 0.99


def test_the_ratio_of_what_was_measured_together_does_not_see_the_machine() -> None:
    generator = np.random.default_rng(5)
    machine = generator.normal(0, 0.5, 20)
    names = np.repeat(np.arange(20), 8)
    one, other = (size * np.exp(machine[names] + generator.normal(0, 0.02, 160)) for size in (3.0, 2.0))
    value, low, high = ratio_of_medians((one, names), (other, names))
    assert low < 1.5 < high
    assert value == pytest.approx(1.5, rel=0.05)
    alone = interval_of_quantile(one, names, 0.5)
    assert high - low < 0.25 * (alone[1] - alone[0]) / 2.0


def test_few_rounds_have_no_interval() -> None:
    values, names = drawn(np.random.default_rng(6), 7, 5, 0.1)
    assert np.isnan(interval_of_quantile(values, names, 0.5)).all()
    value, low, high = ratio_of_medians((values, names), (2 * values, names))
    assert value == pytest.approx(0.5)
    assert np.isnan([low, high]).all()


def test_a_ratio_is_over_the_rounds_that_both_have() -> None:
    values, names = drawn(np.random.default_rng(7), 16, 5, 0.1)
    later = names >= 9
    found = ratio_of_medians((values, names), (values[later], names[later]))
    assert np.isnan(found[1:]).all()
