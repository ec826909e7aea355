"""A cell on a machine that may not see the study's folder: what goes there, and what comes back.

The cell's whole folder is made there, and what is measured of its checkpoints is measured beside them. What
comes back is all but weights: settings, logs, scores, and the tables' parts, with the identity of the weights
that they were measured on (``held.json``), so that the study's tables are up to date without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.analysis.contract import checkpoint_inputs
from rankdrift.analysis.engine import PARTS
from rankdrift.analysis.parts import content
from rankdrift.analysis.sources.elsewhere import Held, held_elsewhere
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import IntegrityError, Preempted, RankError, UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import resolve
from rankdrift.progress import Say
from rankdrift.studies.carry_out import carry_out, train_elsewhere
from rankdrift.studies.cell_record import read_record
from rankdrift.studies.cells import Cell
from rankdrift.studies.executors import Ask, Executor, Outcome, Spread, Task
from rankdrift.studies.executors.processes import node
from rankdrift.studies.launcher import Among
from rankdrift.studies.restarts import Restarts
from rankdrift.studies.study_checkpoints import run_subjects
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps

STAYS = frozenset({"checkpoints", "exports", "merged", "model", "traces", "held.json"})
"""Of a run's folder: weights, and what is as large."""
PIECE = 2**26
"""Bytes of weights that travel at once."""
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
    cell, error = order.here(), None
    try:
        carry_out(cell, *how)
    except (UserError, RankError, Preempted) as problem:
        error = problem
    except Exception as problem:
        error = RankError(f"{type(problem).__name__}: {problem}")
    return Brought(None if shared else _packed(cell, how[0], root), error)


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
        carry_out(cell, how[0], ("train",), restarts)


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
        with tarfile.open(fileobj=io.BytesIO(brought.archive)) as tar:
            tar.extractall(root.root, filter="data")
    return dataclasses.replace(outcome, value=None, error=brought.error)


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


@contextlib.contextmanager
def brought(subjects: Iterable[Subject], executor: Executor, say: Say) -> Iterator[None]:
    """Have the weights of checkpoints here that other nodes hold, for as long as the block lasts.

    What compares weights of several runs needs them at one place. Raises RankError where a node that holds
    some has gone, and IntegrityError where what has come is not what was measured there.
    """
    folders: list[Path] = []
    try:
        for subject in subjects:
            if held := held_elsewhere(subject):
                run = RunLayout(_root_of(subject))
                for name in (held.steps[subject.step], run.model.name):
                    if name in held.contents and not (run.root / name).exists():
                        folders.append(run.root / name)
                        say(f"{folders[-1]} from {held.node}")
                        _bring(held, name, run, executor)
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _bring(held: Held, name: str, run: RunLayout, executor: Executor) -> None:
    """Copy a folder of a run from the node that holds it."""
    for relative, size in executor.at(held.node, listed, str(Path(held.folder, name))):
        there = str(Path(held.folder, name, relative))
        bring_file(partial(executor.at, held.node), there, run.root / name / relative, size)
    if content(run.root / name) != held.contents[name]:
        raise IntegrityError(
            f"{held.folder}/{name} on {held.node}: not what was measured there; carry the cell out again: "
            f"'rankdrift study retry STUDY {run.root.name}'"
        )


def bring_file(ask: Callable[..., Any], there: str, here: Path, size: int) -> None:
    """Copy a file from the node that is asked."""
    here.parent.mkdir(parents=True, exist_ok=True)
    with open(here, "wb") as file:
        while file.tell() < size:
            file.write(ask(piece, there, file.tell()))


def listed(folder: str) -> list[tuple[str, int]]:
    """Return the files below a folder with their sizes, bytes."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.stat().st_size) for path in found]


def piece(path: str, offset: int) -> bytes:
    """Return at most ``PIECE`` bytes of a file."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PIECE)


def _root_of(subject: Subject) -> Path:
    assert subject.run_dir is not None
    return subject.run_dir


def _packed(cell: Cell, with_base: bool, root: StudyLayout) -> bytes:
    """Return what travels of a cell, as a tar."""
    buffer = io.BytesIO()
    top = Path(os.path.abspath(root.root))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in _travels(cell, with_base):
            tar.add(path, str(Path(os.path.abspath(path)).relative_to(top)), recursive=False)
        held = json.dumps(dataclasses.asdict(_held(cell))).encode()
        member = tarfile.TarInfo(str(Path(os.path.abspath(cell.run.held)).relative_to(top)))
        member.size = len(held)
        tar.addfile(member, io.BytesIO(held))
    return buffer.getvalue()


def _travels(cell: Cell, with_base: bool) -> Iterator[Path]:
    """Yield the files of a cell that travel; of a name that begins with a dot none: locks, and unfinished."""
    run, study = cell.run, cell.study
    for path in sorted(run.root.rglob("*")):
        parts = path.relative_to(run.root).parts
        if path.is_file() and not STAYS & set(parts) and not path.name.startswith("."):
            yield path
    names = [f"{cell.spec.run_name}-step-", f"{cell.spec.run_name}."]
    if with_base:
        yield from (path for path in sorted(RunLayout(study.base).scores.glob("*")) if path.is_file())
        names.append("base-step-")
    for path in sorted((study.tables / PARTS).glob("*/*.*")):
        if path.is_file() and path.name.startswith(tuple(names)):
            yield path


def _held(cell: Cell) -> Held:
    """Return what this machine holds of a cell's weights."""
    base = resolve(cell.spec.model.name, cell.spec.model.revision)
    root = Path(os.path.abspath(cell.run.root))
    steps, contents = {}, {}
    for subject in run_subjects(cell.spec, cell.run, base):
        for path in checkpoint_inputs(subject):
            absolute = Path(os.path.abspath(path))
            if absolute.is_relative_to(root) and (found := content(path)):
                contents[str(absolute.relative_to(root))] = found
        assert subject.tuned is not None
        steps[subject.step] = str(Path(os.path.abspath(subject.tuned)).relative_to(root))
    return Held(node(), str(root), steps, contents)
