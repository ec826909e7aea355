"""What a cell has said of itself in its run's folder, and whether a process carries it out: without torch."""

from __future__ import annotations

from typing import Any

from rankdrift import files
from rankdrift.layout import RunLayout


def is_finished(run: RunLayout) -> bool:
    """Return whether a run is trained to its end."""
    return run.status.exists() and files.read_json(run.status)["state"] == "finished"


def read_record(run: RunLayout) -> dict[str, Any]:
    """Return what a cell has said of itself, empty where it has not begun."""
    return dict(files.read_json(run.cell)) if run.cell.exists() else {}


def is_carried_out(run: RunLayout) -> bool:
    """Return whether a process of this machine carries out the cell now."""
    return files.is_held(run.cell_lock)
