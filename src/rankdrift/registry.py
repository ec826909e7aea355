"""Extension points found by file name: to add a task, a metric, a method ... is to add one file.

A point is a package, or several, whose modules each define one thing under an agreed attribute. Nothing is
imported until it is asked for, so listing the names costs no torch import.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankdrift.errors import require_known

POINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "task": ("TASK", ("rankdrift.tasks",)),
    "kind": ("KIND", ("rankdrift.tasks.kinds",)),
    "metric": ("METRIC", ("rankdrift.metrics",)),
    "method": ("METHOD", ("rankdrift.methods",)),
    "probe": ("PROBE", ("rankdrift.training.probes",)),
    "analysis": ("ANALYSIS", ("rankdrift.analysis.measures", "rankdrift.analysis.comparisons")),
    "figure": ("FIGURE", ("rankdrift.analysis.figures",)),
}
"""Extension point -> the attribute its modules define, and its packages."""


TASK_FILES = (".yaml", ".yml")
"""A task's name may be a file of a user's own."""


def names(point: str) -> list[str]:
    """Return the sorted names found at an extension point, for instance ``names("task")``."""
    return sorted(_modules(point))


def require(point: str, name: str) -> None:
    """Raise UserError with the near miss unless ``<point>/<name>.py`` exists."""
    if _is_file(point, name):
        load(point, name)
        return
    require_known(point, name, names(point))


def load(point: str, name: str) -> Any:
    """Return what ``<point>/<name>.py`` defines; raise UserError with the near miss if there is none."""
    if _is_file(point, name):
        return importlib.import_module("rankdrift.tasks._yaml").read_task(Path(name))
    require(point, name)
    return getattr(importlib.import_module(_modules(point)[name]), POINTS[point][0])


def tasks_of(given: Iterable[str]) -> tuple[str, ...]:
    """Return the tasks that names stand for: a group's (``tasks.GROUPS``), in their order, each once."""
    groups: dict[str, tuple[str, ...]] = importlib.import_module("rankdrift.tasks").GROUPS
    return tuple(dict.fromkeys(task for name in given for task in groups.get(name, (name,))))


def _is_file(point: str, name: str) -> bool:
    return point == "task" and name.endswith(TASK_FILES)


def _modules(point: str) -> dict[str, str]:
    """Return the modules of a point by name."""
    packages = [importlib.import_module(package) for package in POINTS[point][1]]
    return {
        name: f"{package.__name__}.{name}"
        for package in packages
        for name in _names_in(tuple(package.__path__))
    }


@functools.cache  # a recipe's checks ask hundreds of times
def _names_in(folders: tuple[str, ...]) -> list[str]:
    """Return the names of the modules in a package's folders that define something."""
    found = pkgutil.iter_modules(folders)
    return [module.name for module in found if not module.name.startswith("_") and not module.ispkg]
