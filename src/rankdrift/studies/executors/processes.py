"""A task in a process of its own, which sees its own GPUs or cores, and tells what became of it."""

from __future__ import annotations

import contextlib
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
from types import FrameType, ModuleType
from typing import Any

from rankdrift import signals
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.studies.executors import Outcome, Task

VISIBLE = "CUDA_VISIBLE_DEVICES"
NODE = "RANKDRIFT_NODE"
"""What a machine is called that ``rankdrift cluster`` has given a name."""

_context = multiprocessing.get_context("spawn")


def node() -> str:
    """Return this machine's name."""
    return os.environ.get(NODE) or socket.gethostname()


@dataclass(eq=False)
class Running:
    """A task under way in a process."""

    task: Task
    slots: Sequence[int]
    """Which of the machine's it takes."""
    process: SpawnProcess
    receiver: Connection
    began: float

    @classmethod
    def start(
        cls,
        task: Task,
        slots: Sequence[int] = (),
        gpus: Sequence[str] | None = None,
        cores: set[int] | None = None,
    ) -> Running:
        """Start it; without GPUs or cores of its own it has those of this process."""
        receiver, sender = _context.Pipe(duplex=False)
        process = _context.Process(target=_child, args=(task, gpus, cores, os.getpid(), sender))
        with _main_left_out():
            process.start()
        sender.close()
        return cls(task, slots, process, receiver, time.monotonic())

    def outcome(self) -> Outcome:
        """Return what became of it; waits until its process has said so, or has ended."""
        value, error = self._told()
        self.process.join()
        self.receiver.close()
        return Outcome(self.task, node(), value, error, time.monotonic() - self.began)

    def has_ended(self, seconds: float) -> bool:
        """Return whether it has said what became of it, or has ended; waits so long for that."""
        return self.receiver.poll(seconds)

    def stop(self) -> None:
        """Ask it to save and stop."""
        self.process.terminate()

    def _told(self) -> tuple[Any, BaseException | None]:
        try:
            value, error = self.receiver.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return None, RankError(f"its process ended by {how} and said nothing (out of memory?)")
        return value, error


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Let a process that is started not import this one's program again: Ray's takes a second for it."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def ended(running: Sequence[Running]) -> list[Running]:
    """Wait until some have something to say, and return them."""
    ready = wait([each.receiver for each in running])
    return [each for each in running if each.receiver in ready]


def share_of_cores(slots: Sequence[int], count: int) -> set[int]:
    """Return the cores of some of ``count`` slots: all of this process's, divided evenly; never none."""
    every = sorted(os.sched_getaffinity(0))
    mine = {core for place, core in enumerate(every) if place * count // len(every) in slots}
    return mine or {every[slot % len(every)] for slot in slots}


def attempt(task: Task) -> tuple[Any, BaseException | None]:
    """Carry out a task in this process; return its value, or why it failed."""
    try:
        return task.function(*task.arguments), None
    except (UserError, RankError, Preempted) as error:
        return None, error
    except Exception as error:
        traceback.print_exc()
        return None, RankError(f"{type(error).__name__}: {error}")


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
        told = attempt(task)
    sender.send(told)


def _redirect(log: Path) -> None:
    """Let a file take the output of this process and of those that it starts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _stop(number: int, frame: FrameType | None) -> None:
    if number in signals.STOP:
        raise Preempted("run the same command again to go on")
