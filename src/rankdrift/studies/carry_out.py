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
from rankdrift.analysis.sources.subjects import base_subject
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
from rankdrift.studies.study_checkpoints import run_subjects, stored_steps, study_params
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
) -> None:
    """Train, consolidate and score a cell, and measure its checkpoints, or do some of these.

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

    Raises
    ------
    UserError, RankError, Preempted
        As training raises them; UserError where another process carries out the same cell.

    """
    inner = indented(say, by=4)
    with _record(cell, stages) as record:
        ways: dict[str, Callable[[], object]] = {
            "train": lambda: _train(cell, restarts, inner),
            "consolidate": lambda: _consolidate(cell, inner),
            "score": lambda: score_run(cell.run, steps=[], base=with_base, progress=inner),
            "represent": lambda: _measure(cell, REPRESENTATIONS, with_base, record, inner),
            "measure": lambda: _measure(cell, registry.names("analysis"), with_base, record, inner),
        }
        for name in (stage for stage in STAGES if stage in stages):
            with record.stage(name, say):
                ways[name]()


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
    if (record.get("state"), record.get("digest")) != ("done", cell.digest) or not is_finished(run):
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
def _record(cell: Cell, stages: Sequence[str]) -> Iterator[_Record]:
    """Keep a cell to this process, and say what becomes of it; it is done when its last stage is."""
    with files.held(cell.run.cell_lock, wait=MOMENT) as free:
        if not free:
            raise UserError(f"{cell.run.root}: another process carries out this cell; wait for it or stop it")
        before = read_record(cell.run)
        record = _Record(cell.run, {"attempts": 0} | before)
        record.was_done = (before.get("state"), before.get("digest")) == ("done", cell.digest)
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
