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
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have all of these signals handled by one function; afterwards, as before."""
    before = {number: signal.signal(number, handler) for number in {*STOP, SAVE}}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end_with_parent(parent: int) -> None:
    """Be sent SIGTERM when the process ``parent`` ends; at once if it is not this one's parent any more."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def launcher_pid() -> int:
    """Return the process that started this one, as the end of ``end_with_parent``; 0 if it is gone.

    DeepSpeed's launcher and its ranks are one process group; whoever inherits orphans is in another.
    """
    parent = os.getppid()
    orphaned = "CROSS_RANK" in os.environ and os.getpgid(parent) != os.getpgrp()
    return 0 if orphaned else parent
