"""Extension points found by file name: to add a task, a metric, a method ... is to add one file.

A point is a package whose modules each define one thing under an agreed attribute. Nothing is
imported until it is asked for, so listing the names costs no torch import.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from rankdrift.errors import UserError, did_you_mean

POINTS: dict[str, tuple[str, str]] = {
    "task": ("rankdrift.tasks", "TASK"),
    "metric": ("rankdrift.metrics", "METRIC"),
    "method": ("rankdrift.methods", "METHOD"),
    "probe": ("rankdrift.training.probes", "PROBE"),
    "analysis": ("rankdrift.analysis.analyses", "ANALYSIS"),
    "figure": ("rankdrift.analysis.figures", "FIGURE"),
}


def names(point: str) -> list[str]:
    """Return the sorted names found at an extension point, for instance ``names("task")``."""
    package = importlib.import_module(POINTS[point][0])
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def require(point: str, name: str) -> None:
    """Raise UserError with the near miss unless ``<point>/<name>.py`` exists."""
    known = names(point)
    if name not in known:
        raise UserError(f"unknown {point} '{name}': {did_you_mean(name, known)}")


def load(point: str, name: str) -> Any:
    """Return what ``<point>/<name>.py`` defines; raise UserError with the near miss if there is none."""
    require(point, name)
    package, attribute = POINTS[point]
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)
