"""A cell that sleeps: in a file of its own, since the process that carries it out imports just this."""

from __future__ import annotations

import time

from rankdrift.errors import RankError


def cell(seconds: float, fails: bool) -> None:
    """Sleep, as a cell would train; or fail half way."""
    time.sleep(seconds / 2)
    if fails:
        raise RankError("a rank failed")
    time.sleep(seconds / 2)
