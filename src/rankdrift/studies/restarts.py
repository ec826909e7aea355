"""Start the ranks of a run again where one of them was lost: from its newest checkpoint, so many times."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rankdrift.errors import RankError
from rankdrift.layout import RunLayout
from rankdrift.progress import Say
from rankdrift.studies.launcher import Among, launch
from rankdrift.studies.stand import Stand

PAUSE, LONGEST_PAUSE = 2.0, 30.0
"""Seconds before the first restart, twice as many before each further one, up to so many."""


@dataclass(frozen=True)
class Restarts:
    """What to do where a rank fails."""

    most: int = 0
    """How often a run is started again."""
    elastic: bool = False
    """Whether it then goes on without the rank that failed, or the machine that is gone."""
    among: Among | None = None
    """The ranks that are started here, where the run has more on other machines."""


NONE = Restarts()


class Job(Protocol):
    """The ranks of a run, wherever they are; its text says how many."""

    def start(self) -> None:
        """Start them and wait for them; raise as ``launcher.launch``."""

    def stand(self) -> Stand:
        """Return where the run stands."""

    def without_what_failed(self, stand: Stand) -> Job:
        """Return the ranks that are left, all of them where it is not known who failed."""


@dataclass(frozen=True)
class LocalRanks:
    """Ranks that this machine starts."""

    ranks: int
    arguments: Sequence[str]
    """Of ``rankdrift train``."""
    run: RunLayout
    among: Among | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.ranks} ranks"

    def start(self) -> None:
        """Start them."""
        launch(self.ranks, self.arguments, self.variables, self.among)

    def stand(self) -> Stand:
        """Read the run's folder."""
        return Stand.of(self.run)

    def without_what_failed(self, stand: Stand) -> LocalRanks:
        """Return one rank less, and hide the GPU of the one that failed from the others."""
        if self.ranks == 1:
            return self
        hidden = _without(stand.failed, self.ranks, {**os.environ, **self.variables})
        return dataclasses.replace(self, ranks=self.ranks - 1, variables=hidden)


def launch_to_the_end(
    ranks: int, arguments: Sequence[str], run: RunLayout, restarts: Restarts, say: Say
) -> None:
    """Start the ranks of a run on this machine, again where one is lost or fails, and wait for them."""
    carry_to_the_end(LocalRanks(ranks, arguments, run, restarts.among), restarts, say)


def carry_to_the_end(job: Job, restarts: Restarts, say: Say) -> None:
    """Start a job, again where a rank is lost or fails, and wait for it.

    What nobody can go on from is raised at once: input that cannot be used, damaged data, a stop on request.

    Raises
    ------
    RankError
        Of the last start, once there were enough, or where a restart made no step.

    """
    for failures in range(restarts.most + 1):
        before = job.stand() if restarts.most else None
        try:
            job.start()
            return
        except RankError as error:
            if before is None or failures == restarts.most:
                raise
            after = job.stand()
            if failures and not after.is_beyond(before):
                why = "it has made no step since it was started again, and is not once more"
                raise type(error)(f"{error}; {why}") from None
            if restarts.elastic:
                job = job.without_what_failed(after)
            say(f"  {error}")
        pause = min(PAUSE * 2**failures, LONGEST_PAUSE)
        say(f"  restart {failures + 1} of {restarts.most} on {job} in {pause:.0f} s, from step {after.saved}")
        time.sleep(pause)


def _without(failed: int | None, ranks: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that hides the GPU of a rank from the others; without GPUs it says nothing."""
    if failed is None:
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(number) for number in range(ranks)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[:failed] + devices[failed + 1 :])}
