"""Which rows make a step: counts in closed form, every row once, a function of the step alone."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from rankdrift.data.mixture import Mixture, largest_remainder
from rankdrift.errors import UserError
from rankdrift.spec import MixtureSpec, parse_spec

SIZES = {"a": 6, "b": 30, "c": 12}


def _stream(mixture: Mixture, rows: int) -> np.ndarray:
    """The first so many rows, over all steps."""
    steps = range(-(-rows // mixture.global_batch))
    return np.concatenate([mixture.rows(step) for step in steps])[:rows]


def _per_task(stream: np.ndarray, sizes: dict[str, int] = SIZES) -> list[int]:
    ends = np.cumsum(list(sizes.values()))
    return np.bincount(np.searchsorted(ends, stream, side="right"), minlength=len(sizes)).tolist()


@pytest.mark.parametrize(("size", "global_batch"), [(24, 8), (25, 8), (7, 16), (1, 3)])
def test_every_epoch_of_one_task_has_every_row_once(size: int, global_batch: int) -> None:
    mixture = Mixture({"a": size}, global_batch, seed=3)
    assert all(len(mixture.rows(step)) == global_batch for step in range(3 * size))
    for epoch in _stream(mixture, 3 * size).reshape(-1, size):
        assert sorted(epoch) == list(range(size))


@pytest.mark.parametrize("sizes", [{"a": 10}, {"a": 4, "b": 6}])
def test_order_in_proportion_is_that_of_seeded_permutations(sizes: dict[str, int]) -> None:
    """As runs were recorded with before there were mixtures."""
    mixture = Mixture(sizes, 4, seed=42)
    expected = np.concatenate([np.random.default_rng([42, epoch]).permutation(10) for epoch in (0, 1)])
    # asked for out of turn: no step depends on an earlier call
    for step in (3, 0, 4, 2, 1):
        np.testing.assert_array_equal(mixture.rows(step), expected[4 * step : 4 * step + 4])


def test_seeds_and_epochs_differ() -> None:
    epochs = [tuple(Mixture({"a": 50}, 50, seed).rows(step)) for seed in (1, 2) for step in (0, 1)]
    assert len(set(epochs)) == 4


@pytest.mark.parametrize(
    ("settings", "quotas"),
    [
        ({}, [6, 30, 12]),
        ({"weights": "balanced"}, [16, 16, 16]),
        # 6, 30, 12 to the power 1/2: 2.449, 5.477, 3.464 of 11.391, times 48
        ({"temperature": 2.0}, [10, 23, 15]),
        ({"weights": {"a": 1, "b": 2, "c": 3}}, [8, 16, 24]),
        ({"caps": 12}, [6, 12, 12]),
        ({"caps": {"b": 10}}, [6, 10, 12]),
        ({"caps": {"b": 12}, "weights": "balanced"}, [10, 10, 10]),
        # 48 / 7 = 6.86, 27.43, 13.71: down to 6, 27, 13 and the two largest remainders up
        ({"weights": {"a": 0.25, "b": 1.0, "c": 0.5}}, [7, 27, 14]),
    ],
)
def test_every_block_has_the_exact_share_of_every_task(settings: dict[str, Any], quotas: list[int]) -> None:
    mixture = Mixture(SIZES, 8, 5, MixtureSpec(**settings))
    blocks = _stream(mixture, 4 * sum(quotas)).reshape(4, -1)
    assert [_per_task(block) for block in blocks] == [quotas] * 4
    assert len({tuple(block) for block in blocks}) == 4


@pytest.mark.parametrize(
    "settings", [{}, {"weights": "balanced"}, {"temperature": 3.0}, {"caps": {"b": 7}, "weights": "balanced"}]
)
def test_no_row_of_a_task_comes_again_before_all_have_come(settings: dict[str, Any]) -> None:
    """At every moment, not at a block's end alone."""
    mixture = Mixture(SIZES, 5, 9, MixtureSpec(**settings))
    stream, starts = _stream(mixture, 400), np.cumsum([0, *SIZES.values()])
    for task, size in enumerate(SIZES.values()):
        mine = stream[(stream >= starts[task]) & (stream < starts[task + 1])]
        kept = 7 if size == 30 and "caps" in settings else size
        epochs = [mine[first : first + kept] for first in range(0, len(mine), kept)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert all(set(epoch) == set(epochs[0]) for epoch in epochs[:-1])
        if len(epochs) > 2 and kept > 3:
            assert len({tuple(epoch) for epoch in epochs[:-1]}) > 1


def test_a_capped_task_keeps_rows_all_over_it() -> None:
    stream = _stream(Mixture({"a": 3, "b": 10}, 4, 0, MixtureSpec(caps={"b": 4})), 28)
    assert Counter(stream.tolist()) == dict.fromkeys([0, 1, 2, 3 + 0, 3 + 2, 3 + 5, 3 + 7], 4)


@pytest.mark.parametrize("settings", [{}, {"weights": "balanced"}, {"temperature": 2.0, "caps": 9}])
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_what_was_seen_is_what_the_steps_had(settings: dict[str, Any], steps: int) -> None:
    mixture = Mixture(SIZES, 7, 1, MixtureSpec(**settings))
    lengths = np.random.default_rng(0).integers(1, 99, sum(SIZES.values()))
    stream = _stream(mixture, 7 * steps) if steps else np.array([], np.int64)
    ends = np.cumsum(list(SIZES.values()))
    tokens = np.bincount(np.searchsorted(ends, stream, side="right"), weights=lengths[stream], minlength=3)
    assert mixture.seen(steps).tolist() == _per_task(stream)
    assert mixture.seen(steps, lengths).tolist() == tokens.astype(int).tolist()


def test_the_order_does_not_depend_on_what_was_asked_before() -> None:
    settings = MixtureSpec(weights="balanced")
    asked = Mixture(SIZES, 7, 1, settings)
    backwards = [asked.rows(step) for step in reversed(range(30))][::-1]
    for step, rows in enumerate(backwards):
        np.testing.assert_array_equal(Mixture(SIZES, 7, 1, settings).rows(step), rows)


def test_tasks_of_one_size_have_permutations_of_their_own() -> None:
    stream = _stream(Mixture({"a": 20, "b": 20}, 8, 2, MixtureSpec(weights={"a": 1, "b": 3})), 400)
    first, second = stream[stream < 20][:20], stream[stream >= 20][:20] - 20
    assert not np.array_equal(first, second)


def test_largest_remainders_add_up_and_are_at_most_one_off() -> None:
    generator = np.random.default_rng(3)
    for _ in range(200):
        p = generator.dirichlet(np.ones(5))
        total = int(generator.integers(1, 10_000))
        counts = largest_remainder(total, p)
        assert counts.sum() == total
        assert (np.abs(counts - total * p) < 1).all()


def test_a_share_of_no_row_is_refused() -> None:
    with pytest.raises(UserError, match=r"leaves task 'a' none of a block of 48 rows: raise its weight"):
        Mixture(SIZES, 8, 0, MixtureSpec(weights={"a": 1e-6, "b": 1, "c": 1}))


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"weights": {"topic": 1, "describ": 1}}, "mixture.weights names 'describ'.*did you mean 'describe'"),
        ({"caps": {"sst2": 4}}, "mixture.caps names 'sst2', which data.tasks has not"),
        ({"weights": {"topic": 1}}, "mixture.weights has no weight of describe: give every task one"),
        ({"weights": "balanced", "temperature": 2}, "both set the shares: give one"),
        ({"weights": {"topic": 0, "describe": 1}}, "greater than 0"),
        ({"temperature": 0}, "greater than 0"),
        ({"temperature": float("inf")}, "finite"),
        ({"caps": 0}, "greater than or equal to 1"),
        ({"wieghts": "balanced"}, "unknown key 'data.mixture.wieghts'.*did you mean 'weights'"),
    ],
)
def test_settings_that_make_no_mixture_are_named(mixture: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_spec({"data": {"tasks": ["topic", "describe"], "mixture": mixture}})
    assert re.search(message, str(caught.value), flags=re.DOTALL)
