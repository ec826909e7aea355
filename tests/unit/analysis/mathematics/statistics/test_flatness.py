"""How flat a function is around its best, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from rankdrift.analysis.mathematics.statistics.flatness import share_within


def test_a_wedge_is_as_flat_as_its_slopes_say() -> None:
    """|u - 1/2| - e is at most 0 on 2 e of the range, wherever else it is looked at."""
    for edge in (0.05, 0.2, 0.4):
        for places in (np.linspace(0, 1, 11), np.array([0.0, 0.31, 0.5, 0.77, 1.0])):
            assert share_within(places, np.abs(places - 0.5) - edge) == pytest.approx(2 * edge)


def test_a_parabola_is_as_flat_as_its_root_says() -> None:
    places = np.linspace(0, 1, 2001)
    assert share_within(places, (places - 0.4) ** 2 - 0.01) == pytest.approx(0.2, abs=1e-4)


def test_nothing_counts_beyond_the_outermost_and_towards_what_is_not_known() -> None:
    assert share_within(np.array([0.25, 0.75]), np.array([-1.0, -1.0])) == pytest.approx(0.5)
    assert share_within(np.array([0.2, 0.5, 0.8]), np.array([-1.0, np.inf, -1.0])) == 0
    assert share_within(np.array([0.3]), np.array([-1.0])) == 0
    assert share_within(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0
    assert share_within(np.array([0.0, 1.0]), np.array([0.0, 0.0])) == 1


def test_the_order_of_trials_does_not_matter() -> None:
    places, generator = np.linspace(0, 1, 9), np.random.default_rng(0)
    excess = generator.normal(size=9)
    order = generator.permutation(9)
    expected = share_within(places, excess)
    assert share_within(places[order], excess[order]) == expected
    assert 0 < expected < 1
