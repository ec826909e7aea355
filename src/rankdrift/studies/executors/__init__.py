"""Executors: who carries out a study's tasks, and where. One file each; ``local`` needs nothing further.

A task is a function with what it is called with, and the slots (GPUs; on a machine without, places) that it
takes. An executor starts tasks as slots get free and yields what became of each, in the order in which they
end. It keeps nothing: what is done says the folder that a task wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Begun = Callable[["Task", str], None]
"""Takes a task that begins, and the node on which it does."""


Ask = Callable[..., Any]
"""Takes the number of one of a task's nodes, a short function and arguments; returns what it gives there."""


@dataclass(frozen=True)
class Spread:
    """How a task is done that is larger than a node: parts on several, then the rest on the first of them."""

    part: Callable[..., None]
    """Called on every node at a time, with the task's arguments and an ``Among``."""
    join: Callable[..., None]
    """Called on the first node behind them, with the task's arguments, the number of nodes, and ``Ask``."""


@dataclass(frozen=True)
class Task:
    """Something to be done once."""

    name: str
    function: Callable[..., Any]
    """Of a module, so that another process finds it by name."""
    arguments: tuple[Any, ...] = ()
    """Picklable."""
    slots: int = 1
    spread: Spread | None = None
    """How it is done by several nodes; None is never."""
    log: Path | None = None
    """Where its output goes, if others run beside it."""
    node: str | None = None
    """The node that has what it goes on from; another one does it where that one has gone. None is any."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    task: Task
    node: str
    value: Any = None
    error: BaseException | None = field(default=None, compare=False)
    """Why it failed; ``Preempted`` where it was asked to stop."""
    seconds: float = 0.0


class Executor(Protocol):
    """Carries out tasks."""

    is_here: bool
    """Whether all tasks are done on this machine, so that they see its folders."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Return what a short function gives on every node, by node."""
        ...

    def at(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a short function gives on one node; raise RankError where that has gone."""
        ...

    def carry_out(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        """Yield the outcome of every task as it ends; a task that fails stops no other.

        Raises UserError where a task asks for more than there is. Closed before its end, or interrupted, it
        asks the tasks under way to stop, and waits for them.
        """
        ...
