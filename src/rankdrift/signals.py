"""The signals a training is asked by, and processes that end with their parent. Standard library only.

SIGTERM (a spot VM's notice) and SIGINT (Ctrl-C) ask it to save and stop, SIGUSR1 to save and go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP = frozenset({signal.SIGTERM, signal.SIGINT})
SAVE = signal.SIGUSR1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@contextlib.contextmanager
def answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have all of these signals handled by one function; afterwards, as before."""
    before = {number: signal.signal(number, handler) for number in {*STOP, SAVE}}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore() -> None:
    """Ignore all of these signals, and what a terminal sends: for a process that ends by other means."""
    for number in {*STOP, SAVE, signal.SIGHUP, signal.SIGQUIT}:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent(parent: int) -> None:
    """Be sent SIGTERM when the process ``parent`` ends; at once if it is not this one's parent any more."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Be, for as long as the block lasts, the parent of what children of this process leave behind."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def launcher_pid() -> int:
    """Return the process that started this one, as the end of ``end_with_parent``; 0 if it is gone.

    DeepSpeed's launcher and its ranks are one process group; whoever inherits orphans is in another.
    """
    parent = os.getppid()
    orphaned = "CROSS_RANK" in os.environ and os.getpgid(parent) != os.getpgrp()
    return 0 if orphaned else parent
