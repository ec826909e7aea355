"""Where the time of a step goes, by the clock of the device that does the work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Part = Literal["data", "forward", "backward", "update", "exchange"]


class StepClock:
    """Seconds of the parts of one step.

    A GPU is given work faster than it does it: there a part is timed between two events in its queue, which
    nobody waits for until the step is done anyway. On CPUs the process's own clock is right.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the block's time to a part."""
        if not torch.cuda.is_available():
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._events.append((name, first, last))

    def seconds(self) -> dict[str, float]:
        """Return ``seconds_<part>`` of each part there was; on a GPU once it has done all of them."""
        total = defaultdict(float, self._seconds)
        if self._events:
            self._events[-1][2].synchronize()  # an event that has not been reached has no time yet
        for name, first, last in self._events:
            total[name] += first.elapsed_time(last) / 1000
        return {f"seconds_{name}": seconds for name, seconds in total.items()}
