"""How far a study is, told from the folders of its cells: by any process, on any machine that sees them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.progress import duration
from rankdrift.studies.cell_record import is_carried_out, read_record
from rankdrift.studies.cells import Cell
from rankdrift.studies.executors import Executor
from rankdrift.studies.executors.processes import node
from rankdrift.studies.storage import Storage

STATES = ("done", "running", "waiting", "stopped", "lost", "failed")
"""``lost``: it says that it runs, and its process is gone; ``stopped``: on request."""
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "stopped": "yellow"}
RECENT = 20
"""Steps whose median is the time of one that is left."""


@dataclass(frozen=True)
class CellStatus:
    """How far one cell is."""

    name: str
    state: str
    stage: str = ""
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    """What its stages took, those of the present attempt and those that were not repeated."""
    left: float | None = None
    """Seconds of training that are left; None where it does not train, or cannot be told."""
    node: str = ""
    attempts: int = 0
    error: str = ""


def status_of(cell: Cell) -> CellStatus:
    """Return how far a cell is."""
    record, run = read_record(cell.run), cell.run
    if not record:
        return CellStatus(cell.name, "waiting", steps=_steps(cell))
    told = files.read_json(run.status) if run.status.exists() else {}
    state, step, steps = record["state"], told.get("step", 0), told.get("steps", _steps(cell))
    if record["node"] == node():
        state = _seen(run, state)
    training = state == "running" and record["stage"] == "train"
    return CellStatus(
        name=cell.name,
        state=state,
        stage=record["stage"],
        step=step,
        steps=steps,
        seconds=sum(record.get("seconds", {}).values()),
        left=_left(run, steps - step) if training else None,
        node=record["node"],
        attempts=record["attempts"],
        error=record.get("error") or "",
    )


def status_everywhere(cells: Sequence[Cell], executor: Executor) -> list[CellStatus]:
    """Return how far the cells are, also those under way on nodes that share no folder with this machine."""
    found = {cell.name: [status_of(cell)] for cell in cells}
    for answers in executor.ask(_own, list(cells)).values():
        for answer in answers:
            found[answer.name].append(answer)
    return [max(found[cell.name], key=_told_last) for cell in cells]


def with_stored(cells: Sequence[Cell], found: Sequence[CellStatus]) -> list[CellStatus]:
    """Return how far cells are, those as done that are not here but that their storage has.

    Raises UserError where a storage cannot be used.
    """
    storages = {cell.spec.storage: Storage.of(cell.spec) for cell in cells}
    return [_stored(cell, told, storages[cell.spec.storage]) for cell, told in zip(cells, found, strict=True)]


def _stored(cell: Cell, told: CellStatus, storage: Storage | None) -> CellStatus:
    if storage is None or told.state in ("done", "running"):
        return told
    stored = storage.find(storage.place(cell))
    if stored is None:
        return told
    return dataclasses.replace(
        told,
        state="done",
        stage="",
        step=told.steps,
        seconds=sum(stored.record.get("seconds", {}).values()),
        left=None,
        node=storage.url,
        attempts=stored.record["attempts"],
        error="",
    )


def _own(cells: Sequence[Cell]) -> list[CellStatus]:
    """Return how far the cells are that this machine has carried out, or does."""
    return [status_of(cell) for cell in cells if read_record(cell.run).get("node") == node()]


def _told_last(status: CellStatus) -> tuple[bool, bool, int]:
    return status.state == "running", status.state == "done", status.step


def as_json(found: Sequence[CellStatus]) -> dict[str, Any]:
    """Return plain JSON types: ``cells``, and how many are in which state."""
    return {"cells": [asdict(each) for each in found], "states": counts(found), "left": left_in_all(found)}


def counts(found: Sequence[CellStatus]) -> dict[str, int]:
    """Return how many cells are in each state, those that are in one."""
    states = [each.state for each in found]
    return {state: states.count(state) for state in STATES if state in states}


def left_in_all(found: Sequence[CellStatus]) -> float | None:
    """Return the seconds that all that is left will take at the present pace; None where none is done yet.

    Every cell is taken to be as long as the mean of those that are done, as many at a time as run now.
    """
    done = [each.seconds for each in found if each.state == "done" and each.seconds]
    if not done:
        return None
    at_once = max(1, sum(each.state == "running" for each in found))
    return statistics.fmean(done) * sum(each.state not in ("done", "failed") for each in found) / at_once


def table(found: Sequence[CellStatus]) -> Table:
    """Return the cells as a table, and below what they come to."""
    title = ", ".join(f"{count} {state}" for state, count in counts(found).items())
    left = left_in_all(found)
    still = left is not None and any(each.state not in ("done", "failed") for each in found)
    caption = f"about {duration(left)} left at this pace" if still and left is not None else None
    rows = Table(box=SIMPLE, title=f"{len(found)} cells: {title}", caption=caption)
    for name in ("cell", "state", "stage", "step", "time", "left", "node", "why"):
        rows.add_column(
            name, overflow="fold", justify="right" if name in ("step", "time", "left") else "left"
        )
    for each in found:
        rows.add_row(
            each.name,
            f"[{COLOURS.get(each.state, 'default')}]{each.state}[/]",
            each.stage,
            f"{each.step}/{each.steps}" if each.steps else "",
            duration(each.seconds) if each.seconds else "",
            duration(each.left) if each.left is not None else "",
            each.node,
            each.error,
        )
    return rows


def _seen(run: RunLayout, state: str) -> str:
    """Return the state of a cell of this machine: what is done is looked at again now and then."""
    if is_carried_out(run):
        return "running"
    return "lost" if state == "running" else state


def _steps(cell: Cell) -> int:
    return 0 if cell.spec.training.is_open else cell.spec.training.steps


def _left(run: RunLayout, steps: int) -> float | None:
    rows = files.last_jsonl(run.metrics)
    recent = [row["seconds"] for row in rows if row["split"] == "train" and "seconds" in row][-RECENT:]
    return statistics.median(recent) * steps if recent else None
