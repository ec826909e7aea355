"""Intervals and paired tests against closed forms and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rankdrift.analysis.mathematics.statistics.intervals import (
    flip_test,
    mcnemar,
    paired_t_interval,
    t_interval,
    t_quantile,
)
from rankdrift.analysis.mathematics.statistics.seeds import holm, minimum_detectable_difference, seed_control
from rankdrift.errors import UserError


@pytest.mark.parametrize(("confidence", "t"), [(0.95, 4.302653), (0.9, 2.919986)])
def test_t_interval_of_three_seeds(confidence: float, t: float):
    got = t_interval([1.0, 2.0, 3.0], confidence)
    half = t / math.sqrt(3)  # s = 1; t from the tables for 2 degrees of freedom
    assert (got.mean, got.low, got.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-6)
    assert (got.n, got.reason) == (3, "")


DRAWS = 2000


def four_standard_errors(share: float, draws: int = DRAWS) -> float:
    """A correct simulation is further off than this once in 16,000."""
    return 4 * math.sqrt(share * (1 - share) / draws)


@pytest.mark.parametrize("seeds", [3, 5])
def test_t_interval_covers_what_it_says(seeds: int):
    found = [t_interval(values) for values in np.random.default_rng(0).normal(size=(DRAWS, seeds))]
    covered = np.mean([each.low <= 0 <= each.high for each in found])
    assert covered == pytest.approx(0.95, abs=four_standard_errors(0.95))


def test_a_percentile_bootstrap_of_three_seeds_covers_three_quarters():
    """The pitfall. All three resamples are the smallest with p = 1/27 > .025: it is the range of the three,
    which holds the centre of a symmetric distribution unless all lie on one side, 1 - 2 / 2^3 = .75."""
    values = np.random.default_rng(0).normal(size=(DRAWS, 3))
    bootstrap = stats.bootstrap(
        (values,), np.mean, axis=-1, method="percentile", n_resamples=999, batch=50, rng=1
    ).confidence_interval
    naive = np.mean((bootstrap.low <= 0) & (bootstrap.high >= 0))
    assert naive == pytest.approx(0.75, abs=four_standard_errors(0.75))
    ours = np.mean([each.low <= 0 <= each.high for each in map(t_interval, values)])
    assert ours == pytest.approx(0.95, abs=four_standard_errors(0.95))


def test_paired_t_interval_of_differences():
    got = paired_t_interval([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    alone = t_interval([1.0, 2.0, 3.0])
    assert (got.interval.mean, got.interval.low, got.interval.high) == (alone.mean, alone.low, alone.high)
    assert got.stdev == 1.0
    t = 2.0 * math.sqrt(3)  # mean / (s / sqrt n); with 2 degrees of freedom P(T > t) is in closed form
    assert got.p_value == pytest.approx(1 - t / math.sqrt(t**2 + 2))


def test_pairing_removes_what_the_seed_does_to_both():
    """The seed's part has 20 times the spread of the rest; power and coverage come from the rest alone."""
    generator = np.random.default_rng(0)
    seeds = 20 * generator.normal(size=(DRAWS, 3, 1))
    pairs = seeds + generator.normal(size=(DRAWS, 3, 2))
    found = [paired_t_interval(*pair.T) for pair in pairs]
    covered = np.mean([each.interval.low <= 0 <= each.interval.high for each in found])
    assert covered == pytest.approx(0.95, abs=four_standard_errors(0.95))
    rejected = np.mean([each.p_value < 0.05 for each in found])
    assert rejected == pytest.approx(0.05, abs=four_standard_errors(0.05))
    assert np.median([each.stdev for each in found]) < 2


def test_seeds_that_agree_have_no_interval():
    assert "same value" in t_interval([0.9, 0.9, 0.9]).reason
    first, second = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.3, 0.4])
    assert np.ptp(second - first) > 0  # rounding alone, which a t test would call significant
    with pytest.warns(RuntimeWarning, match="cancellation"):
        assert stats.ttest_rel(first, second).pvalue < 1e-30
    found = paired_t_interval(first, second)
    assert (found.interval.low, found.interval.high, found.p_value) == (None, None, None)
    assert "same value" in found.interval.reason


def test_one_pair_has_a_difference_and_a_reason():
    found = paired_t_interval([0.5], [0.75])
    assert (found.interval.mean, found.stdev, found.p_value) == (0.25, None, None)
    assert "one seed" in found.interval.reason


def test_one_seed_has_a_mean_and_a_reason_but_no_interval():
    got = t_interval([0.7])
    assert (got.mean, got.low, got.high) == (0.7, None, None)
    assert "one seed" in got.reason


def test_mcnemar_counts_only_where_models_differ():
    first = [True] * 20 + [False] * 5 + [True] + [False] * 3
    second = [True] * 20 + [True] * 5 + [False] + [False] * 3
    got = mcnemar(first, second)
    assert (got.gained, got.lost) == (5, 1)
    assert got.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # P(at most 1 of 6), two-sided
    assert mcnemar(first, first).p_value == 1.0


def test_exchanging_single_items_is_mcnemars_test():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, size=(2, 60)).astype(float)
    exact = mcnemar(first, second).p_value
    assert flip_test(first, second, np.arange(60)) == pytest.approx(exact, abs=0.02)
    assert flip_test(first, first, np.arange(60)) == 1.0


def test_exchanging_documents_is_wrong_as_often_as_it_says():
    """Alike models whose differences are common to a document's 6 items: McNemar's test is wrong often."""
    rng, documents, wrong, naive = np.random.default_rng(2), np.arange(30).repeat(6), 0, 0
    for _ in range(200):
        outcome = rng.choice(3, size=30, p=[0.6, 0.2, 0.2]).repeat(6)
        first, second = (outcome == 1).astype(float), (outcome == 2).astype(float)
        wrong += flip_test(first, second, documents, draws=999) < 0.05
        naive += mcnemar(first, second).p_value < 0.05
    assert wrong / 200 < 0.09
    assert naive / 200 > 0.2


def test_mcnemar_is_wrong_no_more_often_than_it_says():
    """Two equally good models that differ on a quarter of 100 items; the exact test is conservative."""
    generator = np.random.default_rng(0)
    outcomes = generator.choice(4, p=[0.5, 0.125, 0.125, 0.25], size=(DRAWS, 100))
    p_values = [mcnemar(draw % 2, draw // 2 % 2).p_value for draw in outcomes]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) <= 0.05 + four_standard_errors(0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "one or more finite numbers"),
        (lambda: t_interval([1.0, math.nan]), "one or more finite numbers"),
        (lambda: mcnemar([1.0, 0.0], [1.0]), "2 and 1 items"),
        (lambda: paired_t_interval([1.0, 2.0], [1.0]), "2 and 1 seeds"),
        (lambda: mcnemar([0.5], [1.0]), "right \\(1\\) or wrong \\(0\\)"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message: str):
    with pytest.raises(UserError, match=message):
        call()


def test_intervals_of_few_parts_are_students():
    # Student's t, two-sided 95 %: 7 degrees of freedom 2.365, 1 degree 12.706 (any printed table)
    assert t_quantile(8) == pytest.approx(2.365, abs=1e-3)
    assert t_quantile(2) == pytest.approx(12.706, abs=1e-3)
    assert t_quantile(1) == np.inf


def test_holm_by_hand() -> None:
    """Sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04; a later one is no smaller: .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_the_published_step_down_procedure() -> None:
    """Rejections at alpha are those of the algorithm as Holm states it: stop at the first that fails."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        p = generator.random(7) ** 3
        for alpha in (0.01, 0.05, 0.2):
            rejected = np.zeros(7, dtype=bool)
            for place, test in enumerate(np.argsort(p)):
                if p[test] > alpha / (7 - place):
                    break
                rejected[test] = True
            assert ((holm(p) <= alpha) == rejected).all()


def test_holm_holds_the_family_wise_error() -> None:
    """Ten true hypotheses, 4,000 families: a rejection in at most 5 %; uncorrected, in 1 - .95^10 = 40 %."""
    p = np.random.default_rng(0).random((4000, 10))
    corrected = np.mean([holm(family).min() <= 0.05 for family in p])
    assert corrected <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4000)
    assert np.mean(p.min(axis=1) <= 0.05) == pytest.approx(1 - 0.95**10, abs=0.03)


@pytest.mark.parametrize("edge", [[], [0.5], [1.0, 1.0, 0.9]])
def test_holm_of_few_or_large_p_values(edge: list[float]) -> None:
    got = holm(edge)
    assert len(got) == len(edge)
    assert (got <= 1).all()
    assert (got >= np.array(edge)).all()


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_minimum_detectable_difference_is_detected_four_times_in_five(seeds: int) -> None:
    delta = minimum_detectable_difference(seeds)
    draws = np.random.default_rng(seeds).normal(delta, 1, size=(20000, seeds))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 20000))


def test_many_seeds_detect_what_the_normal_distribution_says() -> None:
    normal = (stats.norm.isf(0.025) + stats.norm.isf(0.2)) / math.sqrt(2000)
    assert minimum_detectable_difference(2000) == pytest.approx(normal, rel=1e-2)


def test_the_control_is_what_a_seed_alone_does() -> None:
    got = seed_control([[1.0, 1.5, 3.0], [7.0, 7.25], [4.0]], difference=-1.5)
    # |differences| within arms: .5, 2, 1.5 and .25
    assert (got.pairs, got.median, got.largest, got.share) == (4, 1.0, 2.0, 0.5)


def test_a_difference_that_is_a_change_of_seed_is_within_the_control() -> None:
    """Arms of one distribution: the difference of two seeds of different arms is one of the control's."""
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(500, 2, 5))
    shares = [seed_control(arms, arms[0][0] - arms[1][0]).share for arms in draws]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)


def test_without_two_seeds_there_is_no_control_and_a_reason() -> None:
    got = seed_control([[1.0], [2.0]], 1.0)
    assert (got.pairs, got.median, got.largest, got.share) == (0, None, None, None)
    assert "no arm has two seeds" in got.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: holm([0.5, 1.5]), "in \\[0, 1\\], got \\[0.5, 1.5\\]"),
        (lambda: holm([math.nan]), "in \\[0, 1\\]"),
        (lambda: minimum_detectable_difference(1), "at least two seeds, got 1"),
        (lambda: minimum_detectable_difference(3, power=0.01), "between alpha = 0.05 and 1, got 0.01"),
    ],
)
def test_what_has_no_correction_or_power_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        call()
