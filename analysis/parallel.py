"""One function over many items, by several processes of one thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import forkserver
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

PRELOADED = ("rankdrift.analysis.worklist", "rankdrift.analysis.measures.spectra")
"""What the processes' common parent imports, once for all of them."""


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` of every item as it is done, by ``workers`` processes (0: one a core).

    Every result is computed on one thread, so it does not depend on the number of workers. The function and
    the items must be picklable. What has not begun when one fails is not begun. The processes take the
    machine's GPUs in turn.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(items))
    if workers <= 1:
        yield from (_on_one_thread(function, item) for item in items)
        return
    # Forking a server that has done nothing but imports is quick, and safe where this process has threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    _start_server()
    places, others = context.Value("i", 0), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, initializer=_take_next_gpu, initargs=(places,)) as pool:
        try:
            with _interrupts_kept():
                pool.submit(os.getpid).result()  # the first process waits for the server's imports
            with _interrupts_kept():
                under_way = [pool.submit(_on_one_thread, function, item) for item in items]
            for future in as_completed(under_way):
                yield future.result()
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # what is under way may take minutes
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def take_gpu(place: int) -> None:
    """Make the GPU at a place this process's own, counted round those of the machine, if there are several.

    The first one is every process's already, and a process that sets it would open it without need.
    """
    number = place % max(1, torch.cuda.device_count())
    if number:
        torch.cuda.set_device(number)


def _start_server() -> None:
    """Start the processes' common parent, deaf to Ctrl-C as they all will be: this process ends them.

    A terminal sends it to all at once. A process that dies of it leaves a traceback, or one here of a broken
    pool where it is quicker than this process.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a program that is started inherits
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Act on Ctrl-C behind the block: processes half started when this one ends fail with a traceback."""
    kept: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: kept.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if kept:
            signal.raise_signal(signal.SIGINT)


def _take_next_gpu(places: Synchronized[int]) -> None:
    with places.get_lock():
        place, places.value = places.value, places.value + 1
    take_gpu(place)


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    with threadpool_limits(limits=1):
        return function(item)
