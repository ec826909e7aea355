"""The data of a task at hand, compared with what the hub states of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from rankdrift.data.sources import fetch, from_hub
from rankdrift.errors import IntegrityError, UserError
from rankdrift.hub.cached import check_cached
from rankdrift.progress import Say
from rankdrift.spec import DataSpec
from rankdrift.tasks import Task


def fetch_task(task: Task, data: DataSpec, say: Say) -> Mapping[str, int]:
    """Return the rows of every split of a task's source, by its names; the hub's are fetched into the cache.

    Raises
    ------
    UserError
        If a split or a column is missing.
    IntegrityError
        If a file of the hub is not what the hub states; it is not used again.

    """
    try:
        fetched = fetch(task, data)
    except UserError:  # of a damaged file it says more that it is damaged
        _compare(task, data, say)
        raise
    try:
        _compare(task, data, say)
    except IntegrityError:
        for folder in fetched.made:  # else the next call would read what was made of it
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return fetched.rows


def _compare(task: Task, data: DataSpec, say: Say) -> None:
    if not from_hub(task, data):
        return
    assert task.source is not None
    try:
        count = check_cached(task.source.hub, "dataset")
    except IntegrityError:
        raise
    except UserError as error:  # what is here can be used without network
        say(f"task {task.name}: not compared with the hub ({error})")
    else:
        say(f"task {task.name}: {count} cached files of {task.source.hub} are as the hub states them")
