"""The book of a search: what was asked for and what came of it, written at each change, one file a group.

Trials are asked for in rounds: an arm begins so many, and learns from them when the last has ended. A round
is written whole before any of it begins, so a search that was killed takes up the same trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec.searched import SearchedArm
from rankdrift.studies.search.proposals import propose
from rankdrift.studies.search.pruning import bars
from rankdrift.studies.search.records import ArmRecord, GroupRecord, Trial
from rankdrift.training.selection import is_better_low


class Ledger:
    """The trials of all arms.

    Parameters
    ----------
    arms
        What is searched.

    Raises
    ------
    UserError
        Where the folder of a group holds another search of an arm.

    """

    def __init__(self, arms: Sequence[SearchedArm]) -> None:
        self.arms = tuple(arms)
        self.groups: dict[str, GroupRecord] = {}
        for arm in arms:
            self._open(arm)

    def of(self, arm: SearchedArm) -> ArmRecord:
        """Return what there is of an arm."""
        return self.groups[arm.group].arms[arm.arm]

    def asked(self, arm: SearchedArm) -> list[Trial]:
        """Return the trials of an arm's round: those that are open, else new ones; none if all are done."""
        record = self.of(arm)
        left = arm.search.trials - len(record.trials)
        if left > 0 and not record.open:
            trials = list(record.trials)
            for _ in range(min(left, arm.search.at_once)):
                trials.append(_next(arm, trials, self.groups[arm.group].is_better_low))
            self._write(arm, trials)
        return self.of(arm).open

    def tell(self, arm: SearchedArm, trial: Trial, **came: Any) -> None:
        """Write what came of a trial."""
        told = Trial.model_validate(trial.model_dump() | came)
        self._write(arm, [told if each.number == trial.number else each for each in self.of(arm).trials])

    def _write(self, arm: SearchedArm, trials: Sequence[Trial]) -> None:
        record = self.of(arm).model_copy(update={"trials": tuple(trials)})
        group = self.groups[arm.group]
        self.groups[arm.group] = group.model_copy(update={"arms": {**group.arms, arm.arm: record}})
        files.write_json(_layout(arm).trials, self.groups[arm.group].model_dump(mode="json"))

    def _open(self, arm: SearchedArm) -> None:
        value = arm.search.value
        path = _layout(arm).trials
        if arm.group not in self.groups:
            new = GroupRecord(value=value, is_better_low=is_better_low(value))
            self.groups[arm.group] = read_group(_layout(arm)) if path.exists() else new
        group = self.groups[arm.group]
        mine = ArmRecord(method=arm.spec.method.name, digest=arm.digest, ranges=dict(arm.ranges))
        kept = group.arms.get(arm.arm, mine)
        if kept.digest != mine.digest or group.value != value:
            raise UserError(
                f"{path}: holds another search of '{arm.name}' (other ranges, settings or seeds); choose "
                f"another study (study=NAME), or delete {path.parent}"
            )
        self.groups[arm.group] = group.model_copy(update={"arms": {**group.arms, arm.arm: kept}})


def read_group(study: StudyLayout) -> GroupRecord:
    """Read the search of a group."""
    try:
        return GroupRecord.model_validate(files.read_json(study.trials))
    except ValidationError as error:
        raise UserError(f"{study.trials}: no search of this version ({error.errors()[0]['msg']})") from None


def _layout(arm: SearchedArm) -> StudyLayout:
    return StudyLayout(arm.spec.study_root)


def _next(arm: SearchedArm, trials: Sequence[Trial], is_low: bool) -> Trial:
    """Return the next trial of an arm; the first has the recipe's own settings if they are in the ranges."""
    own = None if trials else arm.own
    settings = propose(arm.ranges, trials, is_low) if own is None else own
    reached = bars(trials) if arm.search.prune == "median" else {}
    return Trial(number=len(trials), settings=settings, own=own is not None, bars=reached)
