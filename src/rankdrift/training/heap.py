"""The memory of a CPU rank: what was freed is kept, in one heap for all threads, in huge pages.

ZeRO allocates and frees buffers of the size of the gradients in every step, and gloo one of the size of all
parameters. Left to itself glibc returns each to the kernel, which maps it anew, 4 KiB at a time, at the next
step; and a thread's own heap holds no block above 64 MiB at all, so that of gloo's two threads, which work
in turn, one gave the parameters' buffer back every time. On two cores full fine-tuning steps of a 135 M model
took 3 s and 5 s by turns so.

Blocks of torch are page-aligned, for which glibc takes a page more and gives back what is left over at either
end. Rests below 1 KiB go into the thread's cache of small blocks and never join what is free around them, so
that a block's own place is too small for the next one of its size: what the heap had beyond what was in use
grew from step to step, and differed between the ranks and starts of one run. Ranks on CPUs begin without that
cache (``studies/launcher.py``); it cannot be switched off later.

Where the C library is another one, or the kernel has no huge pages, nothing changes.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
NEVER = -1


def share_one_heap() -> None:
    """Let threads that begin from now on have no heap of their own.

    In vain once a second thread is there: glibc asks for the limit when the first one begins.
    """
    _set(M_ARENA_MAX, 1)


def use_huge_pages() -> None:
    """Let torch ask for huge pages, unless the user has said otherwise.

    In vain once torch has made a tensor, at which it reads this. Its blocks begin at pages then, which also
    fit better into what was freed.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Take all memory from the heap, and never return any to the kernel."""
    _set(M_MMAP_MAX, 0)
    _set(M_TRIM_THRESHOLD, NEVER)


def _set(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
