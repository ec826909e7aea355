"""A study from recipe to report, by whatever carries out its cells. What is done is not done again."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rankdrift import registry
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.report.build import build_report
from rankdrift.analysis.report.overview import build_overview
from rankdrift.analysis.sources.elsewhere import Held, Weights
from rankdrift.errors import RankError
from rankdrift.layout import StudyLayout
from rankdrift.models.base import resolve
from rankdrift.progress import Say, indented, progress_lines
from rankdrift.scoring.run import score_base
from rankdrift.scoring.scored import require_files
from rankdrift.spec import Recipe, read_spec
from rankdrift.studies import away, driver
from rankdrift.studies.carry_out import STAGES, carry_out, needs_nothing, take_done
from rankdrift.studies.cell_record import is_finished
from rankdrift.studies.cells import Cell, groups_of, write_cells
from rankdrift.studies.clean import clean
from rankdrift.studies.executors import Executor, Outcome, Task
from rankdrift.studies.restarts import NONE, Restarts
from rankdrift.studies.same_run import refuse_other_runs, with_steps_told
from rankdrift.studies.storage import Storage
from rankdrift.studies.study_checkpoints import Source, study_params, study_subjects
from rankdrift.studies.weights import brought


@dataclass(frozen=True)
class Way:
    """How cells are carried out."""

    stages: Sequence[str] = STAGES
    """Some of what is done of a cell."""
    restarts: Restarts = NONE
    """What is done where a rank fails."""
    again: bool = False
    """Whether cells that are done are sent to other machines as well: what these hold of them may be lost."""


def run_study(
    root: StudyLayout,
    recipe: Recipe,
    cells: Sequence[Cell],
    executor: Executor,
    only: Sequence[Cell] | None = None,
    lean: bool = False,
    restarts: Restarts = NONE,
    again: bool = False,
    say: Say = print,
) -> list[Path]:
    """Carry out cells, then compare all that there are; return the report of each group.

    Parameters
    ----------
    root
        The study's folder.
    recipe, cells
        What it was expanded from, and all its cells.
    executor
        Who carries them out.
    only
        The cells to carry out, all by default.
    lean
        Whether what a finished study needs no more is removed.
    restarts
        What is done where a rank fails.
    again
        Whether cells that are done are sent to other machines as well: what these hold of them may be lost.
    say
        Takes a line for each thing done.

    Raises
    ------
    UserError
        Before anything is written, where a run's folder holds another experiment. After all other cells are
        done and reported, the first cell's error where some failed: as it was where all failed alike, else a
        RankError that names them.

    """
    chosen = cells if only is None else only
    failed = run_part(root, recipe, cells, executor, chosen, Way(STAGES, restarts, again), say)
    reports = compare_study(root, cells, lean and not failed, say, executor)
    raise_first(root, failed, len(chosen))
    return reports


def run_part(
    root: StudyLayout,
    recipe: Recipe,
    cells: Sequence[Cell],
    executor: Executor,
    chosen: Sequence[Cell],
    way: Way,
    say: Say = print,
) -> list[Outcome]:
    """Carry out some stages of some cells; return what became of those that failed.

    Raises UserError, before anything is written, where a run's folder holds another experiment, a storage
    cannot be used, or data that will be scored is not there.
    """
    for url in {cell.spec.storage for cell in chosen if cell.spec.storage}:
        with _stage(f"storage {url}", say):
            Storage(url).require()
    for group in groups_of(cells).values():
        _prepare(group, say)
        if executor.is_here and "score" in way.stages:
            require_files(group[0].spec)  # now, and not after hours of training
    with driver.alone(root):
        write_cells(root, recipe, cells)
        for group in groups_of(cells).values():
            if group[0].study != root:
                write_cells(group[0].study, recipe, group)
        take_done(chosen, say)
        return _carried_out(root, cells, chosen, way, executor, say)


def score_bases(cells: Sequence[Cell], say: Say = print) -> None:
    """Score the base model of each group that has some of these cells."""
    for group in groups_of(cells).values():
        with _stage(f"base model of {group[0].study.root}", say):
            score_base(group[0].spec, progress=indented(say))


def compare_study(
    root: StudyLayout,
    cells: Sequence[Cell],
    lean: bool,
    say: Say = print,
    executor: Executor | None = None,
) -> list[Path]:
    """Compare what there is of each group; return their reports. An executor brings what weights it needs."""
    weights = partial(brought, executor=executor, say=indented(say))
    with driver.alone(root):
        groups = groups_of(cells)
        reports = {
            name: report for name, group in groups.items() if (report := _compared(group, lean, weights, say))
        }
        if reports and "" not in reports:
            studies = {name: groups[name][0].study for name in reports}
            say(f"report over all groups: {build_overview(root, studies)}")
    return list(reports.values())


def _prepare(group: Sequence[Cell], say: Say) -> None:
    """Fetch the base model and refuse folders of other experiments, before anything is written."""
    specs = [cell.spec for cell in group]
    with _stage(f"base model {specs[0].model.name} (fetched and converted the first time)", say):
        base = resolve(specs[0].model.name, specs[0].model.revision)
        say(f"  {base}")
    refuse_other_runs(group[0].study, with_steps_told(specs, base), base)


def _carried_out(
    root: StudyLayout,
    cells: Sequence[Cell],
    chosen: Sequence[Cell],
    way: Way,
    executor: Executor,
    say: Say,
) -> list[Outcome]:
    """Carry out the chosen cells; return what became of those that failed."""
    first = {group[0].name for group in groups_of(cells).values()}
    how = [(cell.name in first, way.stages, way.restarts) for cell in chosen]
    tasks = [
        Task(cell.name, carry_out, (cell, *own), cell.ranks, log=cell.run.cell_log)
        for cell, own in zip(chosen, how, strict=True)
    ]
    if not executor.is_here:
        left, done = list[tuple[Task, Cell]](), list[tuple[Task, Cell]]()
        for task, cell, own in zip(tasks, chosen, how, strict=True):
            is_over = not way.again and needs_nothing(cell, own[0])
            (done if is_over else left).append((task, cell))
        if done:
            say(f"{len(done)} of {len(tasks)} cells are done")
        unstored = [(task, cell) for task, cell in done if _unstored(cell)]
        tasks = _sent(root, left, executor) + _sent(root, unstored, executor, only_where_held=True)
    place = {task.name: f"[{number}/{len(tasks)}] {task.name}" for number, task in enumerate(tasks, start=1)}
    failed = []
    for outcome in executor.carry_out(tasks, lambda task, node: say(f"{place[task.name]} on {node}")):
        outcome = away.arrived(outcome, root)
        name, took = place[outcome.task.name], f"{outcome.seconds:.0f} s"
        if outcome.error is None:
            say(f"{name}: done, {took}" + (f"; not stored: {outcome.value}" if outcome.value else ""))
        else:
            failed.append(outcome)
            say(f"{name}: failed after {took}: {outcome.error}")
    return failed


def _sent(
    root: StudyLayout, tasks: Sequence[tuple[Task, Cell]], executor: Executor, only_where_held: bool = False
) -> list[Task]:
    """Return the tasks as ones for other machines, each rather for the one that has the most of its cell.

    Of cells that are done and that a storage has still to get, those alone that a machine has anything of.
    """
    asked = [(cell.name, cell.run, cell.digest) for _, cell in tasks]
    where = away.holders(executor.ask(away.holding, asked)) if tasks else {}
    return [
        away.order_task(task, cell, root, where.get(cell.name))
        for task, cell in tasks
        if cell.name in where or not only_where_held
    ]


def _unstored(cell: Cell) -> bool:
    """Return whether a cell's storage has still to get its weights from the machine that holds them."""
    held = Held.of(cell.run)
    return cell.spec.storage is not None and not (held and held.is_storage)


def _compared(group: Sequence[Cell], lean: bool, weights: Weights, say: Say) -> Path | None:
    """Analyse and report a group; None where nothing of it is there yet."""
    study = group[0].study
    if not any(is_finished(study.run(name)) for name in study.run_names()):
        return None
    title = f" {group[0].group}" if group[0].group else ""
    with _stage(f"analyse{title}", say):
        score_base(group[0].spec, progress=indented(say))
        analyse_study(study, registry.names("analysis"), say, weights=weights)
    with _stage(f"report{title}", say):
        report = build_report(study, progress_lines(say), workers=group[0].spec.analysis.workers)
    if lean:
        with _stage(f"clean{title}", say):
            clean(study, keep_exports=True, checkpoints=True, say=indented(say))
    say(f"report: {report}")
    return report


def raise_first(root: StudyLayout, failed: Sequence[Outcome], count: int) -> None:
    """Raise what the first failed cell raised, as its own error where all failed alike."""
    if not failed:
        return
    errors = [outcome.error for outcome in failed]
    if len(failed) == count and len({str(error) for error in errors}) == 1 and errors[0]:
        raise errors[0]
    names = "; ".join(f"{outcome.task.name}: {outcome.error}" for outcome in failed)
    raise RankError(
        f"{len(failed)} of {count} cells failed ({names}); the others are done and reported; "
        f"'rankdrift study retry {root.root}' takes up the failed ones"
    )


def analyse_study(
    study: StudyLayout,
    names: list[str],
    say: Say,
    source: Source = "auto",
    workers: int | None = None,
    weights: Weights | None = None,
) -> list[Path]:
    """Run some analyses over every stored step of a study's runs; return the tables' paths.

    Weights that are elsewhere come from storages, unless it is said how they come. Raises UserError where
    nothing is stored.
    """
    weights = weights or partial(brought, executor=None, say=indented(say))
    subjects = study_subjects(study, source)
    spec = read_spec(study.run(study.run_names()[0]).spec)
    params = study_params(study, spec, subjects[0].base)
    if workers is not None:
        params = dataclasses.replace(params, workers=workers)
    return run_analyses(names, subjects, study.tables, params, progress_lines(say), weights)


@contextlib.contextmanager
def _stage(title: str, say: Say) -> Iterator[None]:
    """Announce a stage, and say how long it took once it is done."""
    say(title)
    began = time.monotonic()
    yield
    say(f"  {time.monotonic() - began:.0f} s")
