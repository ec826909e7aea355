"""A GPU's memory, and how many tokens at once it has room for, from what a few numbers of them took.

And a process's own: what of it is resident in the machine's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

USABLE = 0.9
"""Share of the memory that is to be had that is made use of: rows differ in their targets, blocks in size."""
GROWTH = 4
"""Times as many tokens, at most, as were measured last: a line through two points does not reach further."""


class Measured(NamedTuple):
    """What a step took."""

    tokens: int
    """Most that were put through the model at once; 0 is before any."""
    peak: int
    """Most bytes of tensors at any time of the step."""


class GpuMemory:
    """The current GPU's memory as torch's allocator counts it, which is to the byte."""

    def limit(self) -> int:
        """Return the bytes that tensors may take: those that are free, and those torch holds already."""
        free, _ = torch.cuda.mem_get_info()
        return int(USABLE * (free + torch.cuda.memory_reserved()))

    def begin(self) -> int:
        """Begin to look for the peak; return what tensors take now."""
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the most that tensors took since ``begin``."""
        return torch.cuda.max_memory_allocated()


def memory_of_device() -> GpuMemory | None:
    """Return the memory that activations are in, if it is a GPU's."""
    return GpuMemory() if torch.cuda.is_available() else None


def resident() -> int:
    """Return the bytes of this process that are in memory, mapped files included."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """Return the most bytes of this process that were in memory at any time; where Linux does not tell, now.

    ``getrusage`` would tell of the process that started this one as well, where that was larger.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    kibibytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return resident() if kibibytes is None else kibibytes * 1024


def tokens_that_fit(measured: Sequence[Measured], limit: int) -> int:
    """Return how many tokens at once stay below a limit of bytes, by a line through the last two points.

    No more than ``GROWTH`` times the last point's; fewer than these where it is above the limit.

    >>> tokens_that_fit([Measured(0, 1000), Measured(100, 3000)], limit=6000)
    250
    >>> tokens_that_fit([Measured(0, 1000), Measured(100, 3000)], limit=60000)
    400
    >>> tokens_that_fit([Measured(100, 3000), Measured(200, 4000)], limit=3500)
    150
    """
    before, last = measured[-2:]
    most = GROWTH * last.tokens
    each = (last.peak - before.peak) / (last.tokens - before.tokens)
    if each <= 0:  # what a step takes besides, its update above all, is more than its activations
        return most
    return min(most, last.tokens + int((limit - last.peak) / each))
