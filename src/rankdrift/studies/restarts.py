"""Start the ranks of a run again where one of them was lost: from its newest checkpoint, so many times."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankdrift import files
from rankdrift.errors import RankError
from rankdrift.layout import RunLayout
from rankdrift.progress import Say
from rankdrift.studies.launcher import Among, launch
from rankdrift.zero_checkpoint.manifest import newest

PAUSE, LONGEST_PAUSE = 2.0, 30.0
"""Seconds before the first restart, twice as many before each further one, up to so many."""


@dataclass(frozen=True)
class Restarts:
    """What to do where a rank fails."""

    most: int = 0
    """How often a run is started again."""
    elastic: bool = False
    """Whether one rank less is started each time, and not on the GPU of the one that failed."""
    among: Among | None = None
    """The ranks that are started here, where the run has more on other machines."""


NONE = Restarts()


def launch_to_the_end(
    ranks: int, arguments: Sequence[str], run: RunLayout, restarts: Restarts, say: Say
) -> None:
    """Start the ranks of a run, again where one is lost or fails, and wait for them.

    What nobody can go on from is raised at once: input that cannot be used, damaged data, a stop on request.

    Raises
    ------
    RankError
        Of the last start, once there were enough, or where a restart made no step.

    """
    variables: Mapping[str, str] = {}
    for failures in range(restarts.most + 1):
        before = _Stand.of(run)
        try:
            launch(ranks, arguments, variables, restarts.among)
            return
        except RankError as error:
            after = _Stand.of(run)
            if failures == restarts.most:
                raise
            if failures and not after.is_beyond(before):
                why = "it has made no step since it was started again, and is not once more"
                raise type(error)(f"{error}; {why}") from None
            if restarts.elastic and ranks > 1:
                variables = _without(after.failed, ranks, {**os.environ, **variables})
                ranks -= 1
            say(f"  {error}")
        pause = min(PAUSE * 2**failures, LONGEST_PAUSE)
        say(f"  restart {failures + 1} of {restarts.most} on {ranks} ranks in {pause:.0f} s, "
            f"from step {newest(run.checkpoints) or 0}")  # fmt: skip
        time.sleep(pause)


@dataclass(frozen=True)
class _Stand:
    """Where a run stands."""

    saved: int
    status: dict[str, Any]

    @classmethod
    def of(cls, run: RunLayout) -> _Stand:
        status = files.read_json(run.status) if run.status.exists() else {}
        return cls(newest(run.checkpoints) or 0, status)

    @property
    def failed(self) -> int | None:
        """The rank that has failed first, if it is known."""
        return self.status.get("rank")

    def is_beyond(self, before: _Stand) -> bool:
        """Whether a start has made a step: the status of one that has not is as old, or of its first."""
        said = self.status != before.status and self.status.get("step", 0) > before.saved
        return said or self.saved > before.saved


def _without(failed: int | None, ranks: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that hides the GPU of a rank from the others; without GPUs it says nothing."""
    if failed is None:
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(number) for number in range(ranks)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[:failed] + devices[failed + 1 :])}
