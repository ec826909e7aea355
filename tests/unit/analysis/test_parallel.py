"""Results in order, computed on one thread each, whatever the number of processes."""

from __future__ import annotations

import functools
import math
import operator

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from rankdrift.analysis.parallel import map_unordered, parallel_map


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_results_are_in_the_order_of_the_items(workers: int, count: int) -> None:
    assert parallel_map(math.sqrt, range(count), workers) == [math.sqrt(item) for item in range(count)]


def test_every_result_is_computed_on_one_thread() -> None:
    with threadpool_limits(limits=2):
        (threads,) = parallel_map(lambda _: {library["num_threads"] for library in threadpool_info()}, [0], 1)
    assert threads == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_as_they_are_done_and_a_failure_is_raised(workers: int) -> None:
    assert sorted(map_unordered(operator.neg, range(9), workers)) == list(range(-8, 1))
    with pytest.raises(ZeroDivisionError):
        list(map_unordered(functools.partial(operator.truediv, 1), range(9), workers))
