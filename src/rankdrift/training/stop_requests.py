"""What a user or a scheduler asks of a running training: to save and go on, or to save and stop.

========================  ==============  =============
signal                    file            what is asked
========================  ==============  =============
SIGUSR1                   ``SAVE``        save, go on
SIGTERM, SIGINT (Ctrl-C)  ``STOP``        save, stop
========================  ==============  =============

The files are made in the run's folder (``touch outputs/demo/runs/full-seed42/SAVE``). A signal may reach
one rank alone, so a rank acts on nothing itself: its number travels with what the ranks exchange in each
step, and the largest decides for all of them.
"""

from __future__ import annotations

import contextlib
import enum
import signal
from collections.abc import Iterator
from types import FrameType

from rankdrift import signals
from rankdrift.errors import Preempted
from rankdrift.layout import RunLayout


class Request(enum.IntEnum):
    """What is asked; of several requests the largest counts."""

    NONE = 0
    SAVE = 1
    STOP = 2


class Requests:
    """What this process has been asked by signals, and its run by files."""

    def __init__(self) -> None:
        self.at_step_ends = False
        """Whether requests wait for the end of a step; until then there is nothing to save, and one to stop
        ends the process at once."""
        self._save = self._stop = self._interrupted = False

    def take(self, run: RunLayout | None) -> Request:
        """Return what was asked of this rank; a signal to save is told once, one to stop always.

        Parameters
        ----------
        run
            Where to look for files; None (all ranks but one) looks for none.

        """
        save, self._save = self._save, False
        if self._stop or (run and run.stop_request.exists()):
            return Request.STOP
        return Request.SAVE if save or (run and run.save_request.exists()) else Request.NONE

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note what a signal asks. A second Ctrl-C does not wait."""
        if number == signals.SAVE:
            self._save = True
            return
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        first, self._stop = not self._stop, True
        self._interrupted = self._interrupted or number == signal.SIGINT
        if first and not self.at_step_ends:
            raise Preempted(
                "asked to stop before the first step: nothing to save; run the same command again"
            )


@contextlib.contextmanager
def listening() -> Iterator[Requests]:
    """Take requests by signals until the end of the block."""
    requests = Requests()
    with signals.answered_by(requests.on_signal):
        yield requests


def forget(run: RunLayout, done: Request) -> None:
    """Remove the files that ask for what has been done."""
    if done >= Request.SAVE:
        run.save_request.unlink(missing_ok=True)
    if done == Request.STOP:
        run.stop_request.unlink(missing_ok=True)
