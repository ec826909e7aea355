"""One cell of a study from training to the tables of its checkpoints; it says in its folder how far it is.

All that it does is done once: a cell that was killed, or has failed, goes on where it was. What is measured
of its checkpoints is measured here, where they are.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankdrift import files, registry
from rankdrift.analysis.engine import measure_checkpoints
from rankdrift.analysis.sources.elsewhere import held_elsewhere
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.export.consolidate import consolidate_run
from rankdrift.layout import RunLayout
from rankdrift.models.base import resolve
from rankdrift.progress import Say, indented, progress_lines
from rankdrift.scoring.run import score_run
from rankdrift.spec import read_spec
from rankdrift.studies.cell_record import is_finished, read_record
from rankdrift.studies.cells import Cell
from rankdrift.studies.driver import MOMENT
from rankdrift.studies.executors.processes import node
from rankdrift.studies.restarts import NONE, Restarts, launch_to_the_end
from rankdrift.studies.storage import Storage
from rankdrift.studies.stored_cells import put, take
from rankdrift.studies.study_checkpoints import run_subjects, stored_steps, study_params
from rankdrift.studies.weights import brought
from rankdrift.zero_checkpoint.manifest import complete_steps

STAGES = ("train", "consolidate", "score", "represent", "measure")
"""In their order; ``represent`` measures hidden states, ``measure`` all else of the checkpoints too."""
REPRESENTATIONS = ("drift",)


def carry_out(
    cell: Cell,
    with_base: bool,
    stages: Sequence[str] = STAGES,
    restarts: Restarts = NONE,
    say: Say = print,
    stored: bool = True,
) -> str | None:
    """Train, consolidate and score a cell, and measure its checkpoints, or do some of these.

    A cell that its storage has is taken from there instead, and one that is done is put there.

    Parameters
    ----------
    cell
        The cell.
    with_base
        Score and measure the base model as well: the first of a group does, with its own.
    stages
        Some of ``STAGES``; those before them are done.
    restarts
        What is done where a rank fails.
    say
        Takes a line for each thing done.
    stored
        Whether its storage is looked at, if it has one.

    Returns
    -------
    str or None
        Why its storage has not got it, of a cell that is done and could not be put there.

    Raises
    ------
    UserError, RankError, Preempted
        As training raises them; UserError where another process carries out the same cell, or its storage
        cannot be used.

    """
    with _alone(cell):
        storage = Storage.of(cell.spec) if stored else None
        if storage and _is_wanted(cell):
            take(storage, cell, indented(say))
        left = _elsewhere(cell)
        if left and needs_nothing(cell, with_base):
            say("  done before, by another machine")
        else:
            with brought(left, None, indented(say)):
                _go_through(cell, with_base, [name for name in STAGES if name in stages], restarts, say)
        return _put(cell, with_base, storage, say) if storage and is_done(cell) else None


def take_done(cells: Sequence[Cell], say: Say = print) -> None:
    """Take what storages have of cells that are neither done nor trained here.

    Raises UserError where a storage cannot be used, or has a cell of another experiment.
    """
    storages = {cell.spec.storage: Storage.of(cell.spec) for cell in cells}
    for cell in cells:
        storage = storages[cell.spec.storage]
        if storage and _is_wanted(cell):
            with _alone(cell):
                take(storage, cell, say)


def is_done(cell: Cell) -> bool:
    """Return whether a cell says that it is done, as it is asked for now."""
    record = read_record(cell.run)
    return (record.get("state"), record.get("digest")) == ("done", cell.digest)


def _is_wanted(cell: Cell) -> bool:
    """Return whether a cell is to be taken from a storage: not in the place of what is trained here."""
    return not is_done(cell) and (not is_finished(cell.run) or bool(_elsewhere(cell)))


def _go_through(cell: Cell, with_base: bool, stages: Sequence[str], restarts: Restarts, say: Say) -> None:
    """Go through some stages, in their order."""
    inner = indented(say, by=4)
    with _record(cell, stages) as record:
        ways: dict[str, Callable[[], object]] = {
            "train": lambda: _train(cell, restarts, inner),
            "consolidate": lambda: _consolidate(cell, inner),
            "score": lambda: score_run(cell.run, steps=[], base=with_base, progress=inner),
            "represent": lambda: _measure(cell, REPRESENTATIONS, with_base, record, inner),
            "measure": lambda: _measure(cell, registry.names("analysis"), with_base, record, inner),
        }
        for name in stages:
            with record.stage(name, say):
                ways[name]()


def _elsewhere(cell: Cell) -> list[Subject]:
    """Return the checkpoints of a finished cell whose weights are not here."""
    if not cell.run.held.exists() or not is_finished(cell.run):
        return []
    base = resolve(cell.spec.model.name, cell.spec.model.revision)
    return [subject for subject in run_subjects(cell.spec, cell.run, base) if held_elsewhere(subject)]


def _put(cell: Cell, with_base: bool, storage: Storage, say: Say) -> str | None:
    """Put a cell that is done into a storage; return why that failed, which undoes nothing of the cell."""
    try:
        left = _elsewhere(cell)
        if left and storage.find(storage.place(cell)):
            return None
        say("  store")
        with brought(left, None, indented(say, by=4)):
            put(storage, cell, with_base, indented(say, by=4))
    except UserError as error:
        say(f"    not stored: {error}")
        return str(error)
    return None


def train_elsewhere(cell: Cell, restarts: Restarts) -> None:
    """Train a cell with ranks of this machine that are not the first; what the first has to say, it says."""
    _train(cell, restarts, lambda line: None)


def _train(cell: Cell, restarts: Restarts, say: Say) -> None:
    """Train the run unless it is finished; how it is scored and analysed may have changed since."""
    run = cell.run
    if is_finished(run):
        if read_spec(run.spec) != cell.spec:
            files.write_json(run.spec, cell.spec.as_dict())
        say("finished before")
        return
    files.write_json(run.experiment, cell.spec.as_dict())  # JSON is YAML
    arguments = ["--config", str(cell.config), "--experiment", str(run.experiment)]
    launch_to_the_end(cell.ranks, arguments, run, restarts, say)


def _consolidate(cell: Cell, say: Say) -> None:
    if complete_steps(cell.run.checkpoints):  # a lean study has exports alone of what it needs
        consolidate_run(cell.run, progress=say)


def needs_nothing(cell: Cell, with_base: bool) -> bool:
    """Return whether a cell is carried out as it is asked for now, so far as its folder tells."""
    record, run = read_record(cell.run), cell.run
    if not is_done(cell) or not is_finished(run):
        return False
    steps = [0] * with_base + list(stored_steps(run))
    measured = _wanted(cell, registry.names("analysis"), steps)
    return read_spec(run.spec) == cell.spec and record.get("measured") == measured


def _wanted(cell: Cell, names: Sequence[str], steps: Sequence[int]) -> dict[str, str]:
    """Return what identifies the measurements of some steps, by analysis."""
    settings = cell.spec.analysis.model_dump(mode="json")
    versions = {name: registry.load("analysis", name).version for name in names}
    return {name: files.digest_json([settings, version, list(steps)]) for name, version in versions.items()}


def _measure(cell: Cell, names: Sequence[str], with_base: bool, record: _Record, say: Say) -> None:
    """Measure the cell's checkpoints, unless they were measured so: the parts may have been cleaned away."""
    base = resolve(cell.spec.model.name, cell.spec.model.revision)
    subjects = run_subjects(cell.spec, cell.run, base)
    if with_base:
        subjects.insert(0, base_subject(base, cell.study.base))
    wanted = _wanted(cell, names, [subject.step for subject in subjects])
    measured: dict[str, str] = record.tree.get("measured", {})
    left = [name for name in names if measured.get(name) != wanted[name]]
    if left:
        params = study_params(cell.study, cell.spec, base)
        measure_checkpoints(left, subjects, cell.study.tables, params, progress_lines(say))
        record.tree["measured"] = measured | {name: wanted[name] for name in left}


@dataclass
class _Record:
    """What a cell says of itself, written at each change."""

    run: RunLayout
    tree: dict[str, Any] = field(default_factory=dict)
    was_done: bool = False
    """Whether there may be nothing to do: then nothing is written until there is something to say."""

    def write(self, state: str, **facts: Any) -> None:
        self.tree |= {"state": state, "time": files.timestamp(), **facts}
        files.write_json(self.run.cell, self.tree)

    @contextlib.contextmanager
    def stage(self, name: str, say: Say) -> Iterator[None]:
        """Say what is done, and how long it took."""
        say(f"  {name}")
        if not self.was_done:
            self.write("running", stage=name)
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        if not self.was_done:
            self.tree["seconds"] = self.tree.get("seconds", {}) | {name: round(seconds, 1)}
        say(f"    {seconds:.0f} s")


@contextlib.contextmanager
def _alone(cell: Cell) -> Iterator[None]:
    """Keep a cell to this process; raise UserError where another one carries it out."""
    with files.held(cell.run.cell_lock, wait=MOMENT) as free:
        if not free:
            raise UserError(f"{cell.run.root}: another process carries out this cell; wait for it or stop it")
        yield


@contextlib.contextmanager
def _record(cell: Cell, stages: Sequence[str]) -> Iterator[_Record]:
    """Say what becomes of a cell; it is done when its last stage is."""
    before = read_record(cell.run)
    record = _Record(cell.run, {"attempts": 0} | before)
    record.was_done = is_done(cell)
    if not record.was_done:
        record.tree |= {"digest": cell.digest, "ranks": cell.ranks, "config": cell.config.name}
        record.tree |= {"node": node(), "pid": os.getpid(), "attempts": record.tree["attempts"] + 1}
        record.write("running", stage=stages[0], error=None, began=files.timestamp())
    try:
        yield record
    except (Preempted, KeyboardInterrupt):
        record.write("stopped")
        raise
    except Exception as error:
        known = isinstance(error, UserError | RankError)
        record.write("failed", error=str(error) if known else f"{type(error).__name__}: {error}")
        raise
    if STAGES[-1] not in stages and not record.was_done:
        record.write("waiting", stage=STAGES[STAGES.index(stages[-1]) + 1])
    elif not record.was_done or record.tree != before:
        record.write("done", stage="")
