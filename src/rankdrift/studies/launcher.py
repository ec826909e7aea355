"""Start the ranks of a training on this machine, pass signals on to them, and see that none is left."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankdrift import signals
from rankdrift.errors import INTERRUPTED, IntegrityError, LostRankError, Preempted, RankError, UserError

GRACE = 15.0  # seconds
POLL = 0.05  # seconds
WHOLE_HOLES = "glibc.malloc.tcache_count=0"
"""What the heap of a CPU rank is told (glibc reads it when a program begins, so that a rank cannot tell it).

A page-aligned block leaves up to a page over at either end. Small rests go into the thread's cache of small
blocks, which keeps them from joining: once freed, the block is no hole any more that has room for one of its
size and the rests, and the heap grows instead (``training/heap.py`` says of which blocks).
"""
LINGER = 5.0
"""Seconds for what a rank has started to end behind it: its guard tells the others how it ended."""

Rank = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Among:
    """The ranks of a training that are started here, of all that it has on several machines."""

    node: int
    """Which of the machines this is; rank 0 is on the first."""
    first: int
    """The first rank here."""
    ranks: int
    """How many are started here."""
    world: int
    """How many there are in all."""
    address: str
    """Of rank 0's machine."""
    port: int
    """At which rank 0 listens there."""

    @property
    def variables(self) -> dict[str, str]:
        """What all ranks are told of where rank 0 is."""
        return {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port), "WORLD_SIZE": str(self.world)}


def default_ranks() -> int:
    """Return the number of GPUs of this machine; without one, two ranks, or one on a single core."""
    import torch  # takes seconds; starting ranks does not need it

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(2, len(os.sched_getaffinity(0)))


def launch(
    ranks: int,
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    among: Among | None = None,
) -> None:
    """Run ``rankdrift train`` with so many ranks on this machine and wait for them.

    ``variables`` are added to their environment. Where they are ``among`` those of several machines, as many
    are started as it says.

    Raises
    ------
    UserError, IntegrityError
        If training refused its input or what is stored (it has said why on the error stream).
    Preempted
        If it was asked to stop, and has saved and stopped.
    LostRankError
        If a rank died, hung or fell silent: the run can go on from its newest checkpoint.
    RankError
        If a rank failed by an error of its own.

    """
    command = [sys.executable, "-u", "-m", "rankdrift.cli.train", *arguments]
    raise_for(run_ranks(ranks, command, variables, among))


def raise_for(status: int) -> None:
    """Raise what an exit code of a training means, a negative one that of a signal; nothing for 0."""
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == Preempted.exit_code:
        raise Preempted("run the same command again to go on")
    for kind in (UserError, IntegrityError):
        if status == kind.exit_code:
            raise kind("training cannot go on; its message is above")
    if status < 0:
        raise LostRankError(f"{_ending(status)}; the same command goes on from the last checkpoint")
    if status == LostRankError.exit_code:
        raise LostRankError("a rank was lost, see above; the same command goes on from the last checkpoint")
    if status:
        raise RankError(f"{_ending(status)}; see above, and train.log in the run's folder")


def run_ranks(
    ranks: int,
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    among: Among | None = None,
) -> int:
    """Run a command once a rank and wait for all; none outlives this process by more than it takes to save.

    Signals that ask something of a training are passed on to every rank, and saving may take its time. Once
    a rank has failed, the others, who may wait for it in vain, have ``GRACE`` seconds to end. Where this
    process is killed, the kernel sends every rank SIGTERM.

    Returns
    -------
    int
        0 if all ranks return 0, 75 if they were stopped, 4 if the others say of one that it is lost, else the
        exit code of the first that failed: its signal's number, negative, where one killed it.

    """
    among = among or Among(0, 0, ranks, ranks, "127.0.0.1", free_port())
    here: dict[str, Any] = {"LOCAL_WORLD_SIZE": among.ranks, "LOCAL_SIZE": among.ranks}
    shared = {**(variables or {}), **among.variables, **here}
    asked: deque[int] = deque()
    processes: list[Rank] = []
    with signals.answered_by(lambda number, frame: asked.append(number)), signals.adopting_orphans():
        try:
            for place in range(among.ranks):
                own = {"RANK": among.first + place, "LOCAL_RANK": place}
                processes.append(_start(command, shared | own))
            return _wait(processes, asked)
        finally:
            for process in processes:
                _end(process)
            _end_what_is_left([process.pid for process in processes])


def _start(command: Sequence[str], variables: Mapping[str, Any]) -> Rank:
    """Start one rank in a process group of its own: what a terminal sends reaches it through us, once."""
    parent = os.getpid()

    def before_exec() -> None:
        for number in signals.STOP:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signals.SAVE, signal.SIG_IGN)  # there is nothing to save until Python runs
        signals.end_with_parent(parent)

    environment = _environment(variables)
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=before_exec
    )


def _environment(variables: Mapping[str, Any]) -> dict[str, str]:
    """Return a rank's environment: this one's, with more, and on CPUs with ``WHOLE_HOLES``."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    given = environment.get("GLIBC_TUNABLES", "")
    if environment.get("DS_ACCELERATOR") == "cpu" and "tcache_count" not in given:
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, (given, WHOLE_HOLES)))
    return environment


def _wait(processes: Sequence[Rank], asked: deque[int]) -> int:
    """Wait for the ranks, and pass on what is asked meanwhile; return the exit code of them together."""
    running, failures, stopped, deadline = list(processes), [], False, math.inf
    while running and time.monotonic() < deadline:
        time.sleep(POLL)
        while asked:
            number = asked.popleft()
            stopped = stopped or number in signals.STOP
            for process in running:
                process.send_signal(number)
        ended = [process for process in running if process.poll() is not None]
        running = [process for process in running if process not in ended]
        failures += [process.returncode for process in ended if process.returncode]
        if failures:
            deadline = min(deadline, time.monotonic() + GRACE)
    if stopped and failures and failures[0] == -signal.SIGTERM:
        return Preempted.exit_code  # asked before it could listen, or when it had saved
    if failures and failures[0] < 0 and LostRankError.exit_code in failures:
        return LostRankError.exit_code  # the others have said so
    return failures[0] if failures else 0


def _end(process: Rank) -> None:
    """End a rank that has not ended by itself."""
    if process.poll() is None:
        process.kill()
        process.wait()


def _end_what_is_left(groups: Sequence[int]) -> None:
    """Give the processes that ranks have left behind some time to end, then end them."""
    deadline = time.monotonic() + LINGER
    left = [group for group in groups if _is_populated(group)]
    while left:
        if time.monotonic() > deadline:
            for group in left:
                os.killpg(group, signal.SIGKILL)
        time.sleep(POLL)
        left = [group for group in left if _is_populated(group)]


def _is_populated(group: int) -> bool:
    """Whether a process group has processes: what ranks left behind has become this process's children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass
        return True
    return False


def _ending(status: int) -> str:
    """Say how a rank ended."""
    if status < 0:
        return f"a rank was killed by {signal.Signals(-status).name}"
    return f"a rank failed with exit code {status}"


def free_port() -> int:
    """Return a port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
