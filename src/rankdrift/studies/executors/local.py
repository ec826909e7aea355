"""The executor that needs nothing but this machine: its GPUs, or places on its cores, are the slots."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from rankdrift import signals
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.studies.executors import Begun, Outcome, Task

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Local:
    """Tasks on this machine.

    Where there is room for one task at a time it runs in this process, without a start of its own; else each
    has a process that sees its own GPUs, or its own share of the cores, and nothing more.
    """

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self.gpus = tuple(gpus)
        """What ``CUDA_VISIBLE_DEVICES`` calls them, a slot each; none on a machine without."""

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
        running: list[_Running] = []
        try:
            while left or running:
                for task in [task for task in left if task.slots <= len(free)]:
                    if task.slots <= len(free):
                        mine, free = free[: task.slots], free[task.slots :]
                        left.remove(task)
                        running.append(self._start(task, mine))
                        begun(task, node())
                for ended in _ended(running):
                    running.remove(ended)
                    free = sorted(free + ended.slots)
                    yield ended.outcome()
        finally:
            for each in running:
                each.process.terminate()
            for each in running:
                each.process.join()

    def _start(self, task: Task, slots: list[int]) -> _Running:
        receiver, sender = _context.Pipe(duplex=False)
        gpus = [self.gpus[slot] for slot in slots] if self.gpus else None
        cores = None if self.gpus else _cores(slots, self.slots)
        process = _context.Process(target=_child, args=(task, gpus, cores, os.getpid(), sender))
        process.start()
        sender.close()
        return _Running(task, slots, process, receiver, time.monotonic())


_context = multiprocessing.get_context("spawn")


def node() -> str:
    """Return this machine's name."""
    return socket.gethostname()


@dataclass(eq=False)
class _Running:
    """A task under way in a process."""

    task: Task
    slots: list[int]
    process: SpawnProcess
    receiver: Connection
    began: float

    def outcome(self) -> Outcome:
        """Return what became of it; its process has said so, or has ended."""
        value, error = self._told()
        self.process.join()
        self.receiver.close()
        return Outcome(self.task, node(), value, error, time.monotonic() - self.began)

    def _told(self) -> tuple[Any, BaseException | None]:
        try:
            value, error = self.receiver.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return None, RankError(f"its process ended by {how} and said nothing (out of memory?)")
        return value, error


def _ended(running: Sequence[_Running]) -> list[_Running]:
    """Wait until some have something to say, and return them."""
    ready = wait([each.receiver for each in running])
    return [each for each in running if each.receiver in ready]


def _cores(slots: Sequence[int], count: int) -> set[int]:
    """Return the cores of some slots: all of this process's, divided evenly; never none."""
    every = sorted(os.sched_getaffinity(0))
    mine = {core for place, core in enumerate(every) if place * count // len(every) in slots}
    return mine or {every[slot % len(every)] for slot in slots}


def _child(
    task: Task, gpus: Sequence[str] | None, cores: set[int] | None, parent: int, sender: Connection
) -> None:
    """Carry out a task in a process of its own, and tell what became of it."""
    signals.end_with_parent(parent)
    if gpus is not None:
        os.environ[VISIBLE] = ",".join(gpus)  # before anything opens a GPU
    if cores is not None:
        os.sched_setaffinity(0, cores)
    if task.log is not None:
        _redirect(task.log)
    with signals.answered_by(_stop):
        told = _outcome(task)
    sender.send(told)


def _redirect(log: Path) -> None:
    """Let a file take the output of this process and of those that it starts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _outcome(task: Task) -> tuple[Any, BaseException | None]:
    try:
        return task.function(*task.arguments), None
    except (UserError, RankError, Preempted) as error:
        return None, error
    except Exception as error:
        traceback.print_exc()
        return None, RankError(f"{type(error).__name__}: {error}")


def _stop(number: int, frame: FrameType | None) -> None:
    if number in signals.STOP:
        raise Preempted("run the same command again to go on")
