"""What goes wrong when few seeds, layers or items are compared naively: each naive number, beside ours.

Naive tests are written here as they are found in published code; figures are closed forms.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rankdrift.analysis.mathematics.statistics.bootstrap import paired_bootstrap
from rankdrift.analysis.mathematics.statistics.intervals import paired_t_interval


def four_standard_errors(share: float, draws: int) -> float:
    """A correct simulation is further off than this once in 16,000."""
    return 4 * math.sqrt(share * (1 - share) / draws)


def test_layers_of_a_model_are_no_replicates_of_it() -> None:
    """Arms that do not differ, three seeds, 30 layers that all carry what the seed did (half the variance).

    A paired t test over the layers of the mean models finds a difference in nearly half of the studies and
    more with every layer; over the seeds, each the mean of its layers, in 5 %.
    """
    draws, seeds, layers = 1000, 3, 30
    generator = np.random.default_rng(0)
    of_seeds = generator.normal(size=(draws, 2, seeds, 1))
    arms = of_seeds + generator.normal(size=(draws, 2, seeds, layers))
    naive = stats.ttest_rel(*arms.mean(axis=2).transpose(1, 0, 2), axis=-1).pvalue
    ours = [paired_t_interval(*arm.mean(axis=-1)).p_value for arm in arms]
    assert np.mean(naive < 0.05) > 0.4
    assert np.mean(np.array(ours) < 0.05) == pytest.approx(0.05, abs=four_standard_errors(0.05, draws))


N = 200
"""Items, the usual limit of a quick evaluation."""


def answers(lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right (1) and wrong (0) answers of two models to 200 items, of which the first has 100 right."""
    first = np.repeat([1.0, 0.0], N // 2)
    second = first.copy()
    second[:lost], second[N // 2 : N // 2 + gained] = 0, 1
    return first, second


def test_two_standard_errors_of_the_same_items_are_not_that_of_their_difference() -> None:
    """8 % of the items change, 14 lost and 2 gained: the scores' errors of 3.5 points hide what pairs show.

    The variance of the paired difference is (flips - difference²) / n whatever the accuracies are.
    """
    first, second = answers(lost=14, gained=2)
    mean, stderr = float(np.mean(second - first)), stats.sem(second - first)
    assert stats.sem(first) == pytest.approx(0.035, abs=0.001)
    naive = 1.96 * math.hypot(stats.sem(first), stats.sem(second))
    assert mean == pytest.approx(-0.06)
    assert naive == pytest.approx(0.098, abs=0.001)
    assert 1.96 * stderr == pytest.approx(1.96 * math.sqrt((0.08 - 0.06**2) / (N - 1)))
    assert 1.96 * stderr < 0.04
    interval = paired_bootstrap(first, second)
    assert interval.high < 0 < mean + naive


def test_a_limit_of_items_hides_what_is_smaller_than_its_error() -> None:
    """A loss of 2 points of a model near chance: 1,267 items (WinoGrande) have 1.4 points, 200 have 3.5."""
    errors = [math.sqrt(0.5 * 0.5 / n) for n in (200, 1267)]
    assert errors == pytest.approx([0.0354, 0.0140], abs=1e-4)
    first, second = answers(lost=10, gained=6)
    found = paired_bootstrap(first, second)
    assert found.value == pytest.approx(-0.02)
    assert found.low < 0 < found.high
