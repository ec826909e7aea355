"""One function over many items, by several processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

PRELOADED = ("rankdrift.analysis.worklist", "rankdrift.analysis.analyses.spectra")
"""What the processes' common parent imports, once for all of them."""


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed as ``map_unordered`` does."""
    numbered = map_unordered(partial(_numbered, function), list(enumerate(items)), workers)
    return [result for _, result in sorted(numbered, key=lambda pair: pair[0])]


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` of every item as it is done, by ``workers`` processes (0: one a core).

    Every result is computed on one thread, so it does not depend on the number of workers. The function and
    the items must be picklable. What has not begun when one fails is not begun.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(items))
    if workers <= 1:
        yield from (_on_one_thread(function, item) for item in items)
        return
    # Forking a server that has done nothing but imports is quick, and safe where this process has threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        under_way = [pool.submit(_on_one_thread, function, item) for item in items]
        try:
            for future in as_completed(under_way):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _numbered(function: Callable[[Item], Result], numbered: tuple[int, Item]) -> tuple[int, Result]:
    number, item = numbered
    return number, function(item)


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    with threadpool_limits(limits=1):
        return function(item)
