"""Which tasks a checkpoint is scored on."""

from __future__ import annotations

from dataclasses import dataclass

from rankdrift import registry
from rankdrift.data.sources import folder_of, local_files
from rankdrift.errors import UserError
from rankdrift.spec import Spec
from rankdrift.tasks import GROUPS, Split, Task


@dataclass(frozen=True)
class Scored:
    """The tasks, and those of ``retention`` that there is no data for."""

    tasks: tuple[Task, ...]
    left_out: tuple[str, ...] = ()


def scored_tasks(spec: Spec, split: Split) -> Scored:
    """Return what to score on a split: ``scoring.tasks``, or by default what was trained on, and retention.

    What was not trained on is scored on the split that reports alone, as nothing is selected by it. By
    default retention is, of a folder of data, what that holds; nothing where all trained tasks are built in,
    since it needs the hub, and nothing by a classification head, which predicts no text.
    """
    trained = [registry.load("task", name) for name in spec.data.tasks]
    if spec.scoring.tasks is not None:
        given = [registry.load("task", name) for name in spec.scoring.tasks]
        learnt = {task.name for task in trained}
        if split != "test" and learnt:
            given = [task for task in given if task.name in learnt]
        return Scored(tuple(given))
    if split != "test" or spec.model.head == "classifier":
        return Scored(tuple(trained))
    names = {task.name for task in trained}
    retention = [registry.load("task", name) for name in GROUPS["retention"] if name not in names]
    if spec.data.root is None:
        from_hub = any(task.source is not None and task.source.hub for task in trained)
        return Scored((*trained, *(retention if from_hub else ())))
    held = [task for task in retention if _is_held(spec, task)]
    left_out = tuple(task.name for task in retention if task not in held)
    return Scored((*trained, *held), left_out)


def require_files(spec: Spec) -> None:
    """Raise UserError where a split that will be scored has no file in the folder of data."""
    for split in spec.scoring.splits:
        for task in scored_tasks(spec, split).tasks:
            local_files(task, split, spec.data)


def _is_held(spec: Spec, task: Task) -> bool:
    try:
        return folder_of(task, spec.data) is not None
    except UserError:
        return False
