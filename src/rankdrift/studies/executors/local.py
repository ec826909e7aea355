"""The executor that needs nothing but this machine: its GPUs, or places on its cores, are the slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rankdrift.errors import RankError, UserError
from rankdrift.studies.executors import Begun, Outcome, Task
from rankdrift.studies.executors.processes import Running, ended, node, share_of_cores


class Local:
    """Tasks on this machine.

    Where there is room for one task at a time it runs in this process, without a start of its own; else each
    has a process that sees its own GPUs, or its own share of the cores, and nothing more.
    """

    is_here = True

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self.gpus = tuple(gpus)
        """What ``CUDA_VISIBLE_DEVICES`` calls them, a slot each; none on a machine without."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Return what a short function gives on every node: on this one."""
        return {node(): function(*arguments)}

    def at(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a short function gives on this machine, the only node."""
        return function(*arguments)

    def carry_out(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        """Yield the outcome of every task as it ends, as ``Executor`` says."""
        for task in tasks:
            if task.slots > self.slots:
                raise UserError(
                    f"{task.name}: asks for {task.slots} slots, there are {self.slots}; lower its ranks, "
                    "or give more --slots"
                )
        sizes = sorted(task.slots for task in tasks)
        alone = len(tasks) < 2 or sizes[0] + sizes[1] > self.slots
        return self._in_turn(tasks, begun) if alone else self._side_by_side(list(tasks), begun)

    def _in_turn(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        """Carry out one after the other in this process."""
        for task in tasks:
            begun(task, node())
            began = time.monotonic()
            try:
                value, error = task.function(*task.arguments), None
            except (UserError, RankError) as problem:
                value, error = None, problem
            yield Outcome(task, node(), value, error, time.monotonic() - began)

    def _side_by_side(self, left: list[Task], begun: Begun) -> Iterator[Outcome]:
        """Carry out as many at a time as there are slots for, the earlier ones first, each in a process."""
        free = list(range(self.slots))
        running: list[Running] = []
        try:
            while left or running:
                for task in [task for task in left if task.slots <= len(free)]:
                    if task.slots <= len(free):
                        mine, free = free[: task.slots], free[task.slots :]
                        left.remove(task)
                        running.append(self._start(task, mine))
                        begun(task, node())
                for each in ended(running):
                    running.remove(each)
                    free = sorted([*free, *each.slots])
                    yield each.outcome()
        finally:
            for each in running:
                each.stop()
            for each in running:
                each.process.join()

    def _start(self, task: Task, slots: list[int]) -> Running:
        gpus = [self.gpus[slot] for slot in slots] if self.gpus else None
        return Running.start(task, slots, gpus, None if self.gpus else share_of_cores(slots, self.slots))
