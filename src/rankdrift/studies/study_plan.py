"""What the cells of a study will take, foretold or tried, one of each arm for all its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from rankdrift.planning.forecast import Forecast, Trial
from rankdrift.studies.cells import Cell
from rankdrift.studies.trial import trial
from rankdrift.training.forecast import foresee

DIGITS = 12


def foreseen(cells: Sequence[Cell]) -> list[Forecast]:
    """Return the forecast of every cell; seeds of one arm differ in nothing that is foretold of it."""
    known: dict[tuple[str, str], Forecast] = {}
    baseline: int | None = None
    for cell in cells:
        if _arm(cell) not in known:
            known[_arm(cell)] = foresee(cell.spec, cell.config, cell.ranks, baseline)
            baseline = known[_arm(cell)].baseline
    return [dataclasses.replace(known[_arm(cell)], run=cell.name) for cell in cells]


def tried(cells: Sequence[Cell]) -> dict[str, Trial]:
    """Return what a few steps of each arm took, by the names of its cells."""
    known: dict[tuple[str, str], Trial] = {}
    for cell in cells:
        if _arm(cell) not in known:
            known[_arm(cell)] = trial(cell.spec, cell.config, cell.ranks)
    return {cell.name: known[_arm(cell)] for cell in cells}


def cells_table(cells: Sequence[Cell]) -> Table:
    """Return the cells with what each is started with."""
    rows = Table("cell", "digest", "ranks", "DeepSpeed", box=SIMPLE, title=f"{len(cells)} cells")
    for cell in cells:
        rows.add_row(cell.name, cell.digest[:DIGITS], str(cell.ranks), cell.config.stem)
    return rows


def _arm(cell: Cell) -> tuple[str, str]:
    return cell.group, cell.spec.arm
