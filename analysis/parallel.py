"""One function over many matrices, by several processes of one thread each."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

PORTIONS = 8
"""Portions of the work a process gets: enough to even out matrices of different size."""


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed by ``workers`` processes (0: one a core).

    Every result is computed on one thread, so it does not depend on the number of workers. The function and
    the items must be picklable.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(items))
    if workers <= 1:
        return _on_one_thread(function, items)
    # Forking a server that has done nothing but imports is quick, and safe where this process has threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, function.__module__])
    size = -(-len(items) // (PORTIONS * workers))
    portions = [items[start : start + size] for start in range(0, len(items), size)]
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        results = pool.map(_on_one_thread, itertools.repeat(function), portions)
        return list(itertools.chain.from_iterable(results))


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` of every item as it is done, computed by ``workers`` processes.

    Every result is computed on one thread, so it does not depend on the number of workers. The function and
    the items must be picklable. What has not begun when one fails is not begun.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        for item in items:
            yield from _on_one_thread(function, [item])
        return
    # Forking a server that has done nothing but imports is quick, and safe where this process has threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "rankdrift.analysis.worklist"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        under_way = [pool.submit(_on_one_thread, function, [item]) for item in items]
        try:
            for future in as_completed(under_way):
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _on_one_thread(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with threadpool_limits(limits=1):
        return [function(item) for item in items]
