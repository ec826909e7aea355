"""What a rank does for its heartbeat: it counts, says how it ends, and ends itself by a verdict."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rankdrift import signals
from rankdrift.errors import INTERRUPTED, LostRankError, Preempted, RankError, UserError
from rankdrift.heartbeat.lines import Lines, Message, wait
from rankdrift.heartbeat.place import Limits, Place
from rankdrift.heartbeat.verdict import End

COUNTER = struct.Struct("=QQ?")
"""Parts of steps that are done, the last step that is done, whether the part under way is limited."""
MEMORY_BYTES = mmap.PAGESIZE
PATIENCE, LONGEST = 15.0, 120.0
"""Seconds that a victim waits for the verdict: more than silence can last, but no more than so many."""


class Pulse:
    """A rank's counter. One of a process that is no rank of a launcher counts for nobody."""

    def __init__(self, memory: mmap.mmap | None = None, guard: Lines | None = None) -> None:
        self._memory = memory or mmap.mmap(-1, MEMORY_BYTES)
        self._guard = guard
        self._count = self._step = 0
        self._ends_itself = False

    def count(self, limited: bool) -> None:
        """Say that a part is done, and whether the next is one that cannot last for long."""
        self._count += 1
        COUNTER.pack_into(self._memory, 0, self._count, self._step, limited)

    def step_is_done(self, step: int) -> None:
        """Say that a step is done; what comes before the next may take its time."""
        self._step = step
        self.count(limited=False)

    def train_in(self, folder: Path, steps: int) -> None:
        """Say where rank 0's verdict is kept: in the log and the status of a run that is this process's."""
        self._say({"folder": str(folder.resolve()), "steps": steps})

    def end(self, end: End, status: int, text: str = "") -> None:
        """Say how this rank ends; by itself, unless it is a victim, which waits for the verdict."""
        self._ends_itself = end is not End.CUT
        self._say({"end": end, "status": status, "text": text})

    def _say(self, message: Message) -> None:
        if self._guard:
            self._guard.send(message)

    def obey(self) -> None:
        """End this process when its guard says so or has gone; blocks, for a thread of its own."""
        assert self._guard is not None
        orders: list[Message] = []
        while not orders and not self._guard.closed:
            wait([self._guard])
            orders = self._guard.receive()
        order = orders[0] if orders else {"exit": LostRankError.exit_code}
        if self._ends_itself:
            return
        if order.get("stack"):
            _print_stacks()
        os._exit(order["exit"])


def _print_stacks() -> None:
    """Print all threads' stacks in one piece: lines of ranks that print at once would mix."""
    with tempfile.TemporaryFile() as stacks:
        faulthandler.dump_traceback(stacks)
        stacks.seek(0)
        os.write(sys.stderr.fileno(), stacks.read())


@contextlib.contextmanager
def beating() -> Iterator[Pulse]:
    """Have this rank watched until the end of the block, and say how it ended.

    Only where a launcher has started it. A rank that has lost another in a collective (RankError) is ended
    there by the verdict, which says the cause.
    """
    if "RANK" not in os.environ:
        yield Pulse()
        return
    limits = Limits.here()
    pulse = _start(Place.here())
    try:
        yield pulse
    except RankError as error:
        pulse.end(End.CUT, error.exit_code, str(error))
        time.sleep(
            min(limits.silence + PATIENCE, LONGEST)
        )  # until the verdict; without one nobody knows better
        raise
    except UserError as error:
        pulse.end(End.FAILED, error.exit_code, str(error))
        raise
    except Preempted as stop:
        pulse.end(End.DONE, stop.exit_code)
        raise
    except KeyboardInterrupt:
        pulse.end(End.DONE, INTERRUPTED)
        raise
    except BaseException as error:
        pulse.end(End.FAILED, RankError.exit_code, f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    else:
        pulse.end(End.DONE, 0)


def _start(place: Place) -> Pulse:
    """Start the guard of this process, and listen to it."""
    descriptor = os.memfd_create("rankdrift-heartbeat")
    os.ftruncate(descriptor, MEMORY_BYTES)
    memory = mmap.mmap(descriptor, MEMORY_BYTES)
    ours, theirs = socket.socketpair()
    passed = (descriptor, theirs.fileno())
    given = [str(number) for number in (os.getpid(), *passed)]
    command = [sys.executable, "-m", "rankdrift.heartbeat.guard", *given, f"rank={place.rank}"]
    with theirs:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=passed,
            preexec_fn=signals.ignore,
        )  # fmt: skip
    os.close(descriptor)
    pulse = Pulse(memory, Lines(ours))
    threading.Thread(target=pulse.obey, name="heartbeat", daemon=True).start()
    return pulse
