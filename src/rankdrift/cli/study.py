"""Plan, carry out and watch a whole study: every arm, group and seed of a recipe, to its report.

  rankdrift study plan   [--experiment RECIPE]   its cells, their memory, disk, tokens and, measured, hours
  rankdrift study run    [--experiment RECIPE]   train, consolidate, score, analyse, report
  rankdrift study status STUDY [--watch]         which cells are done, running, waiting, failed, and why
  rankdrift study retry  STUDY [CELL ...]        carry out those that failed, or these
  rankdrift study cancel STUDY                   save what trains, and stop
  rankdrift study export STUDY                   tables, scores, figures, report, settings as one archive

What is done is not done again: a study that was interrupted goes on when the same command is run again.
SIGTERM or Ctrl-C saves the training under way and stops (exit code 75), SIGUSR1 saves it and goes on. A cell
that fails stops no other. A rank that is lost ends its cell, by name (exit code 4; 1 where it failed by an
error of its own), unless --max-restarts lets it go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rankdrift import signals
from rankdrift.cli._arguments import add_action, count
from rankdrift.cli.plan import add_experiment, cells_from, tell
from rankdrift.errors import Preempted, UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec import Recipe, load_recipe, read_recipe

if TYPE_CHECKING:  # torch takes seconds to import: check first
    from rankdrift.studies.cells import Cell
    from rankdrift.studies.executors import Executor
    from rankdrift.studies.restarts import Restarts
    from rankdrift.studies.status import CellStatus

PAUSE = 2.0
"""Seconds between two looks of ``--watch``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    plan = add_action(actions, "plan", "say what the cells are, and what they will take")
    add_experiment(plan)
    _add_searched(plan)
    plan.add_argument("--measure", action="store_true", help="train a few steps of each arm, for hours")
    plan.add_argument("--json", action="store_true", help="print JSON instead of tables")
    run = add_action(actions, "run", "carry out what is not done, and report")
    add_experiment(run)
    _add_searched(run)
    add_carrying_out(run)
    status = add_action(actions, "status", "say how far each cell is")
    _add_study(status)
    status.add_argument("--watch", action="store_true", help="go on showing it, until all is done")
    add_ray(status)
    status.add_argument("--json", action="store_true", help="print JSON instead of a table")
    retry = add_action(
        actions, "retry", "carry out the cells that failed, or those that are named, and report"
    )
    _add_study(retry)
    retry.add_argument(
        "cells", nargs="*", metavar="CELL", help="as 'status' names them (default: failed ones)"
    )
    add_carrying_out(retry)
    _add_study(add_action(actions, "cancel", "ask whoever carries it out to save and stop"))
    export = add_action(actions, "export", "pack all but weights into one archive")
    _add_study(export)
    export.add_argument("--output", type=Path, metavar="FILE", help="the archive (default: STUDY.tar.gz)")


def add_carrying_out(parser: argparse.ArgumentParser) -> None:
    """Declare how cells are carried out."""
    parser.add_argument(
        "--slots",
        type=int,
        metavar="N",
        help="ranks at a time on this machine (default: its GPUs; on a CPU one cell's)",
    )
    add_ray(parser)
    parser.add_argument(
        "--lean",
        action="store_true",
        help="at the end remove caches, and checkpoints of exported steps before each run's last",
    )
    parser.add_argument(
        "--max-restarts",
        type=count,
        default=0,
        metavar="N",
        help="start a run whose rank is lost or fails again, from its last checkpoint, so many times "
        "(default: 0); not one that has made no step since",
    )
    parser.add_argument(
        "--elastic", action="store_true", help="restart with one rank less, not on the GPU of the failed one"
    )


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Declare where a cluster is."""
    parser.add_argument(
        "--ray",
        metavar="HOST:PORT",
        help="on the nodes of a Ray cluster ('rankdrift cluster'), or 'auto', of this machine's",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked."""
    return ACTIONS[arguments.action](arguments)


def carry_out_recipe(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Carry out all cells of a recipe."""
    cells = cells_from(recipe, arguments)
    from rankdrift.studies.cells import root_of
    from rankdrift.studies.pipeline import run_study

    executor = executor_of(arguments, cells)
    with signals.answered_by(stop):  # while it trains, the launcher answers
        run_study(
            root_of(recipe), recipe, cells, executor, lean=arguments.lean, restarts=restarts_of(arguments)
        )
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    cells = cells_from(_recipe(arguments), arguments)
    if not arguments.json:
        from rich.console import Console

        from rankdrift.studies.study_plan import cells_table

        Console().print(cells_table(cells))
    tell(cells, arguments.measure, arguments.json)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    return carry_out_recipe(_recipe(arguments), arguments)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe, with what its search has found where there is one."""
    recipe = load_recipe(arguments.experiment, arguments.overrides)
    if recipe.search is None and arguments.searched is None:
        return recipe
    from rankdrift.studies.cells import root_of
    from rankdrift.studies.search.found import with_found

    path = arguments.searched or root_of(recipe).searched
    if arguments.searched is None and not path.exists():
        print(f"settings: the recipe's own; nothing was searched yet ({path} is missing)", file=sys.stderr)
        return recipe
    print(f"settings: as a search found them, {path}", file=sys.stderr)
    return with_found(recipe, path)


def _status(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from rankdrift.studies.cells import read_cells
    from rankdrift.studies.status import as_json, status_everywhere, status_of, table, with_stored

    cells = read_cells(StudyLayout(arguments.study))
    cluster = _cluster(arguments.ray) if arguments.ray else None
    silent = False

    def look() -> list[CellStatus]:
        nonlocal silent
        found = status_everywhere(cells, cluster) if cluster else [status_of(cell) for cell in cells]
        try:
            return found if silent else with_stored(cells, found)
        except UserError as error:  # what the folders say is known without it
            silent = True
            print(error, file=sys.stderr)
            return found

    found = look()
    if arguments.json:
        print(json.dumps(as_json(found), indent=2))
        return 0
    console = Console()
    if not arguments.watch:
        console.print(table(found))
        return 0
    with Live(table(found), console=console, auto_refresh=False) as live:
        while any(each.state in ("running", "waiting") for each in found):
            time.sleep(PAUSE)
            found = look()
            live.update(table(found), refresh=True)
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    from rankdrift.studies.cells import named, read_cells
    from rankdrift.studies.pipeline import run_study
    from rankdrift.studies.status import status_of

    root = StudyLayout(arguments.study)
    cells = read_cells(root)
    chosen = named(cells, arguments.cells)
    if not arguments.cells:
        chosen = [cell for cell in cells if status_of(cell).state in ("failed", "lost")]
        if not chosen:
            raise UserError(
                f"{root.root}: no cell has failed; 'rankdrift study run' carries out what is left"
            )
    with signals.answered_by(stop):
        executor = executor_of(arguments, chosen)
        recipe, restarts = read_recipe(root.spec), restarts_of(arguments)
        again = bool(arguments.cells)
        run_study(root, recipe, cells, executor, chosen, arguments.lean, restarts, again)
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from rankdrift.studies.driver import stop

    where = stop(StudyLayout(arguments.study))
    print(f"asked to save and stop what is carried out {where}; 'rankdrift study run' goes on from there")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from rankdrift.studies.cells import read_cells
    from rankdrift.studies.study_export import export

    root = StudyLayout(arguments.study)
    archive = arguments.output or root.root.with_name(root.root.resolve().name + ".tar.gz")
    packed = export(root, read_cells(root), archive)
    print(f"{archive}: {len(packed)} files, {archive.stat().st_size / 1e6:.1f} MB")
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "run": _run,
    "status": _status,
    "retry": _retry,
    "cancel": _cancel,
    "export": _export,
}


def executor_of(arguments: argparse.Namespace, cells: list[Cell]) -> Executor:
    """Return what carries cells out: a cluster, or this machine's GPUs, on a CPU the largest cell's ranks."""
    slots: int | None = arguments.slots
    if arguments.ray is not None:
        if slots is not None:
            raise UserError(f"--slots {slots}: of a cluster each node says its own; leave it out with --ray")
        return _cluster(arguments.ray)
    import torch

    from rankdrift.studies.executors.local import Local
    from rankdrift.studies.executors.processes import VISIBLE

    if slots is not None and slots < 1:
        raise UserError(f"--slots {slots}: give 1 or more, or leave it out")
    if not torch.cuda.is_available():
        return Local(slots or max(cell.ranks for cell in cells))
    count = torch.cuda.device_count()
    if slots is not None and slots > count:
        raise UserError(f"--slots {slots}: this machine shows {count} GPUs; give at most as many")
    visible = os.environ.get(VISIBLE)
    gpus = visible.split(",") if visible else [str(number) for number in range(count)]
    return Local(slots or count, gpus)


def _cluster(address: str) -> Executor:
    from rankdrift.studies.executors.ray import Ray

    return Ray(address)


def restarts_of(arguments: argparse.Namespace) -> Restarts:
    """Return what is asked for where a rank fails."""
    from rankdrift.studies.restarts import Restarts

    return Restarts(arguments.max_restarts, arguments.elastic)


def _add_searched(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--searched", type=Path, metavar="FILE", help="what 'rankdrift search' found (default: the study's)"
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder")


def stop(number: int, frame: FrameType | None) -> None:
    """Answer a signal that asks to stop, while nothing trains."""
    if number in signals.STOP:
        raise Preempted("run the same command again to go on")
