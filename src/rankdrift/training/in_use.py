"""What a CPU rank has in use at the fullest moment: blocks of its heap that nobody gave back, mapped files.

The resident set tells another thing: a heap that keeps what was freed has holes, into which a page-aligned
block of the same size does not fit where something small lies beside them. How many differs from one start
of a run to the next; what is in use does not. Where the C library cannot say (glibc can, from 2.33 on),
nothing is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator

import psutil

from rankdrift.training.memory import resident

PERIOD = 0.01
"""Seconds between two looks, at least."""
SHARE = 1 / 200
"""Of one core, what looking may take: glibc counts what is free, and holes are many."""


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h: bytes, and numbers of blocks."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def bytes_in_use() -> int | None:
    """Return the bytes of blocks that were asked for and not given back, and of files that are in memory.

    Weights that do not train are a file's pages. None where nobody counts the blocks.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd + psutil.Process().memory_info().shared)


class Watch:
    """Looks again and again at what is in use."""

    def __init__(self) -> None:
        self.baseline = resident()
        """Bytes of the process that were resident when it began, mapped files included."""
        self.before = self.most = bytes_in_use()
        self._ended = threading.Event()

    @property
    def peak(self) -> int | None:
        """The process at the beginning and the most that has been in use more since then, bytes."""
        if self.before is None or self.most is None:
            return None
        return self.baseline + self.most - self.before

    def look(self) -> None:
        """Look once."""
        found = bytes_in_use()
        if found is not None and self.most is not None:
            self.most = max(self.most, found)

    def _keep_looking(self) -> None:
        pause = PERIOD
        while not self._ended.wait(pause):
            began = time.thread_time()
            self.look()
            pause = max(PERIOD, (time.thread_time() - began) / SHARE)


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch this process in a thread until the block ends."""
    watch = Watch()
    if watch.before is None:
        yield watch
        return
    thread = threading.Thread(target=watch._keep_looking, name="in-use", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch._ended.set()
        thread.join()
