"""Export the checkpoints of a run while it trains, each as soon as it is whole."""

from __future__ import annotations

import time

from rankdrift import files
from rankdrift.errors import RankError, UserError
from rankdrift.export.consolidate import DEFAULTS, Report, consolidate, silent
from rankdrift.export.contents import Options
from rankdrift.layout import RunLayout, step_name
from rankdrift.zero_checkpoint.manifest import complete_steps

UNFINISHED = ("training", "lost")
"""States that a run is not to stay in: of one that has lost a rank, another start may follow."""
ENDED = ("finished", "failed")
"""States of a run after which no checkpoint comes; a preempted run goes on later.

A run that was killed states none of them: it is known by nobody holding its folder although it says that it
trains."""


class Watch:
    """What has become of each checkpoint of a run so far.

    Parameters
    ----------
    run
        The run's folder; it may not be there yet.
    options
        What kind of export is wanted.
    progress
        Takes one line for the user.

    """

    def __init__(self, run: RunLayout, options: Options = DEFAULTS, progress: Report = silent) -> None:
        self.run, self.options, self.progress = run, options, progress
        self.done: set[int] = set()
        self.failed: dict[int, UserError] = {}
        self.abandoned = 0

    @property
    def has_crashed(self) -> bool:
        """Whether two looks on end found nobody at a run that says it trains: a restart is between them."""
        return self.abandoned > 1

    def look(self) -> bool:
        """Export what has come since the last look; return whether more may come."""
        # asked first: what is saved until then is seen below
        trains = _state(self.run) in UNFINISHED
        self.abandoned = self.abandoned + 1 if trains and not files.is_held(self.run.lock) else 0
        ended = _state(self.run) in ENDED or self.has_crashed
        for step in complete_steps(self.run.checkpoints):
            if step not in self.done:
                self._export(step)
        return not ended

    def _export(self, step: int) -> None:
        try:
            consolidate(self.run, step, self.options, self.progress)
        except UserError as error:
            self._failed(step, error)
        else:
            self.done.add(step)
            self.failed.pop(step, None)

    def _failed(self, step: int, error: UserError) -> None:
        if step not in complete_steps(self.run.checkpoints):
            self.progress(f"{step_name(step)}: removed by the run while it was read; not exported")
            self.failed.pop(step, None)
        elif str(error) != str(self.failed.get(step)):  # another look may find it well: say it once
            self.progress(f"{step_name(step)}: {error}")
            self.failed[step] = error


def watch(
    run: RunLayout, options: Options = DEFAULTS, progress: Report = silent, seconds: float = 5.0
) -> list[int]:
    """Look for new checkpoints every so many seconds until the run has ended; return the exported steps.

    A checkpoint that cannot be exported is reported and tried again at every look. Raises the last one's
    error if there still is such a checkpoint when the run has ended, and RankError where the run was killed.
    """
    progress(f"{run.checkpoints}: watched every {seconds:g} s until the run ends (stop with Ctrl-C)")
    watching = Watch(run, options, progress)
    while watching.look():
        time.sleep(seconds)
    if watching.failed:
        raise watching.failed[max(watching.failed)]
    if watching.has_crashed:
        raise RankError(
            f"{run.root}: no process trains in it any more, and it has not finished; {len(watching.done)} "
            "checkpoints are exported. Start the same command to go on, then watch again"
        )
    progress(f"{run.root}: the run is {_state(run)}; {len(watching.done)} checkpoints are exported")
    return sorted(watching.done)


def _state(run: RunLayout) -> str | None:
    """Return the state that the run says it is in; None before it says anything."""
    return files.read_json(run.status)["state"] if run.status.exists() else None
