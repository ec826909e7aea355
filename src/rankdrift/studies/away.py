"""A cell on a machine that may not see the study's folder: what goes there, and what comes back.

The cell's whole folder is made there, and what is measured of its checkpoints is measured beside them. What
comes back is all but weights: settings, logs, scores, and the tables' parts, with the identity of the weights
that they were measured on (``held.json``), so that the study's tables are up to date without them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rankdrift import files
from rankdrift.analysis.sources.elsewhere import Held
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.studies.carry_out import carry_out, train_elsewhere
from rankdrift.studies.cell_record import read_record
from rankdrift.studies.cells import Cell
from rankdrift.studies.executors import Ask, Outcome, Spread, Task
from rankdrift.studies.executors.processes import node
from rankdrift.studies.launcher import Among
from rankdrift.studies.packing import held_of, packed, unpack
from rankdrift.studies.restarts import Restarts
from rankdrift.studies.weights import bring_file
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps

FARTHEST = ("waiting", "failed", "lost", "stopped", "running", "done")


@dataclass(frozen=True)
class Order:
    """A cell as it is sent: with what is in its DeepSpeed JSON, whose path may say nothing there."""

    cell: Cell
    config: dict[str, Any]

    @classmethod
    def of(cls, cell: Cell) -> Order:
        """Return the order to carry out a cell."""
        return cls(cell, files.read_json(cell.config))

    def here(self) -> Cell:
        """Return the cell with its DeepSpeed JSON on this machine."""
        digest = files.digest_json(self.config)[:8]
        path = self.cell.study.root / ".configs" / digest / self.cell.config.name
        if not path.exists():
            files.write_json(path, self.config)
        return dataclasses.replace(self.cell, config=path)


@dataclass(frozen=True)
class Brought:
    """What came of a cell on another machine."""

    archive: bytes | None
    """A tar of files relative to the study's folder; None where that folder is seen from both machines."""
    error: BaseException | None = None
    left: str | None = None
    """Why it is not in the storage, as ``carry_out`` says."""


def carry_out_away(
    order: Order, driver: dict[str, Any], root: StudyLayout, how: tuple[bool, Sequence[str], Restarts]
) -> Brought:
    """Carry out a cell here, for a study whose folder is on the machine that has sent it.

    Parameters
    ----------
    order
        The cell.
    driver, root
        What the study's ``driver.json`` says there, and the study's folder: where it says the same here, the
        folder is one that both machines see, and nothing has to travel.
    how
        What else ``carry_out`` is given: whether with the base model, the stages, restarts.

    """
    shared = root.driver.exists() and files.read_json(root.driver) == driver
    cell, error, left = order.here(), None, None
    try:
        left = carry_out(cell, *how)
    except (UserError, RankError, Preempted) as problem:
        error = problem
    except Exception as problem:
        error = RankError(f"{type(problem).__name__}: {problem}")
    return Brought(None if shared else packed(cell, how[0], root, _held(cell)), error, left)


def train_part(
    order: Order,
    driver: dict[str, Any],
    root: StudyLayout,
    how: tuple[bool, Sequence[str], Restarts],
    among: Among,
) -> None:
    """Train a cell with this machine's ranks while others do so with theirs; the first says how far it is."""
    cell, restarts = order.here(), Restarts(among=among)
    if among.node:
        train_elsewhere(cell, restarts)
    else:
        carry_out(cell, how[0], ("train",), restarts, stored=False)


def bring_together(
    order: Order,
    driver: dict[str, Any],
    root: StudyLayout,
    how: tuple[bool, Sequence[str], Restarts],
    nodes: int,
    ask: Ask,
) -> None:
    """Make the checkpoints of a run whole here, whose machines share no folder."""
    run = order.cell.run
    for step in complete_steps(run.checkpoints):
        folder = run.checkpoint(step)
        manifest = Manifest.read_part(folder)
        for name, part in manifest.elsewhere().items():
            bring_file(
                partial(ask, part), str(folder.absolute() / name), folder / name, manifest.files[name].size
            )
        whole = manifest.whole()
        whole.check_contents(folder, names=list(manifest.elsewhere()))
        whole.keep(folder)


def arrived(outcome: Outcome, root: StudyLayout) -> Outcome:
    """Unpack what came of a cell into the study's folder; return what became of it."""
    if not isinstance(outcome.value, Brought):
        return outcome
    brought = outcome.value
    if brought.archive is not None:
        unpack(brought.archive, root)
    return dataclasses.replace(outcome, value=brought.left, error=brought.error)


def order_task(task: Task, cell: Cell, root: StudyLayout, where: str | None) -> Task:
    """Return the task of a cell as one for another machine, rather on a node that has a part of it."""
    driver = files.read_json(root.driver)
    arguments = (Order.of(cell), driver, root, task.arguments[1:])
    spread = Spread(train_part, bring_together)
    return dataclasses.replace(task, function=carry_out_away, arguments=arguments, node=where, spread=spread)


def holding(cells: Sequence[tuple[str, RunLayout, str]]) -> dict[str, tuple[int, int]]:
    """Return how far each cell (name, run, digest) is that this machine has something of: state and step."""
    found = {}
    for name, run, digest in cells:
        record = read_record(run)
        if record.get("digest") == digest and record.get("node") == node():
            step = max(complete_steps(run.checkpoints), default=0)
            found[name] = (FARTHEST.index(record["state"]), step)
    return found


def holders(found: dict[str, dict[str, tuple[int, int]]]) -> dict[str, str]:
    """Return for each cell the node that is the farthest with it, of what ``holding`` gives on each."""
    best: dict[str, str] = {}
    for where, cells in found.items():
        for name, far in cells.items():
            if name not in best or far > found[best[name]][name]:
                best[name] = where
    return best


def _held(cell: Cell) -> Held:
    """Return who holds a cell's weights: the storage, where it has just these, or this machine."""
    mine = held_of(cell, node(), os.path.abspath(cell.run.root))
    kept = Held.of(cell.run)
    return kept if kept and kept.is_storage and kept.contents == mine.contents else mine
