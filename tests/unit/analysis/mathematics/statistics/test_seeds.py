"""Multiplicity, power and the negative control of few seeds, against hand computation and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rankdrift.analysis.mathematics.statistics.seeds import holm, minimum_detectable_difference, seed_control
from rankdrift.errors import UserError


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
    shares = [
        seed_control(arms, arms[0][0] - arms[1][0]).share for arms in generator.normal(size=(500, 2, 5))
    ]
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
def test_what_cannot_be_computed_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        call()
