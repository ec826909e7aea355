"""Phases: a study cut into parts that machines do by themselves, each its own cells, with nothing in common.

A file says which machine does which cells, and what each phase does. It needs no cluster and no shared
folder: what lies on the other machines is gathered before a phase compares.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from rankdrift.errors import UserError, require_known
from rankdrift.settings import Section, problems
from rankdrift.spec import read_tree
from rankdrift.studies.cells import Cell

Looking = Literal["doctor", "data", "check", "base", "search"]
Doing = Literal["train", "consolidate", "score", "represent", "measure", "deploy", "compare"]
"""What a phase can do: look at the machine; prepare data; try the arms; score the base model; search; the
stages of a cell; serve each arm's last model, measure what that takes and report; compare all cells and
report."""


class Phase(Section):
    """One phase."""

    title: str
    does: tuple[Looking | Doing, ...]
    where: Literal["every machine", "the first machine"] = "every machine"


class Allocation(Section):
    """Which machine does what, when."""

    experiment: Path
    """The recipe; from the file's folder."""
    machines: dict[str, tuple[str, ...]]
    """Machine -> patterns of names of cells, as the shell has them."""
    phases: dict[str, Phase]
    """Phase -> what it does, in order."""
    overrides: tuple[str, ...] = Field(default=())
    """``key.path=value``, as commands take them."""


def read_allocation(path: Path) -> Allocation:
    """Read a file of phases; raise UserError for what is wrong in it."""
    try:
        found = Allocation.model_validate(read_tree(path))
    except ValidationError as error:
        lines = problems(error, lambda _: list(Allocation.model_fields))
        raise UserError("\n  ".join([f"{path}: the phases are not valid:", *lines])) from None
    experiment = path.parent / found.experiment
    return found.model_copy(update={"experiment": experiment})


def cells_on(allocation: Allocation, machine: str | None, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a machine, or of all; raise UserError unless each cell is on exactly one."""
    names = list(allocation.machines)
    where = {cell.name: [name for name in names if _has(allocation, name, cell)] for cell in cells}
    for given, machines in where.items():
        if len(machines) != 1:
            found = " and ".join(machines) or "none"
            raise UserError(f"phases: cell '{given}' is on {found}: give it to one of the machines")
    if machine is not None:
        require_known("machine", machine, names)
    return [cell for cell in cells if machine is None or where[cell.name] == [machine]]


def phase_of(allocation: Allocation, name: str) -> Phase:
    """Return a phase; raise UserError for one that is not there."""
    require_known("phase", name, allocation.phases)
    return allocation.phases[name]


def what_is_next(allocation: Allocation, name: str, machine: str | None) -> Iterator[str]:
    """Yield what comes after a phase, and where."""
    names = list(allocation.phases)
    after = names[names.index(name) + 1 :]
    if not after:
        yield "that was the last phase"
        return
    following, first = allocation.phases[after[0]], next(iter(allocation.machines))
    is_first = allocation.phases[name].where == "the first machine"
    there = following.where == "the first machine" and machine is not None and not is_first
    if there:
        yield f"next, when phase {name} is done on {', '.join(allocation.machines)}: on {first}"
    if there and "compare" in following.does:
        others = ", ".join(other for other in allocation.machines if other != first)
        yield f"  rankdrift gather, of the study's folders on {others} (docs/launching.md)"
    where = first if there else machine
    target = f"phase{after[0]}" + (f"-{where}" if where else "")
    yield f"{'  ' if there else 'next: '}make {target}: {following.title}"


def _has(allocation: Allocation, machine: str, cell: Cell) -> bool:
    return any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in allocation.machines[machine])
