"""Do one phase of a study on this machine: rankdrift phase 2 --machine vm1 (make phase2-vm1).

A file says which machine does which cells, and what each phase does; launch/phases/three_vms.yaml is an
example to edit. What is done is not done again; each phase says what comes next, and where.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift import signals
from rankdrift.cli.main import main
from rankdrift.cli.plan import add_machine, cells_from
from rankdrift.cli.study import add_carrying_out, executor_of, restarts_of, stop
from rankdrift.spec import Recipe, load_recipe

if TYPE_CHECKING:
    from rankdrift.studies.cells import Cell
    from rankdrift.studies.phases import Phase

ALLOCATION = Path(__file__).resolve().parents[1] / "phases" / "three_vms.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("phase", metavar="PHASE", help="as the file names it: 0, 2, 3, ...")
    parser.add_argument("--machine", metavar="NAME", help="whose cells (default: all)")
    parser.add_argument("--phases", type=Path, default=ALLOCATION, help="the file (default: three_vms.yaml)")
    add_machine(parser)
    add_carrying_out(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Do it; return the exit code of the first command of it that fails."""
    from rankdrift.studies.phases import cells_on, phase_of, read_allocation, what_is_next

    allocation = read_allocation(arguments.phases)
    phase = phase_of(allocation, arguments.phase)
    overrides = [*allocation.overrides, *arguments.overrides]
    recipe = load_recipe(allocation.experiment, overrides)
    cells = cells_from(recipe, arguments)
    mine = cells_on(allocation, arguments.machine, cells)
    print(f"phase {arguments.phase}: {phase.title}: {len(mine)} of {len(cells)} cells", flush=True)
    status = _commands(phase, allocation.experiment, overrides) or _cells(
        phase, recipe, cells, mine, arguments
    )
    if not status:
        print("\n".join(what_is_next(allocation, arguments.phase, arguments.machine)))
    return status


def _commands(phase: Phase, experiment: Path, overrides: list[str]) -> int:
    """Run the commands of a phase; return the exit code of the first that fails, or 0."""
    known = {
        "doctor": ["doctor"],
        "data": ["data", "prepare", "--experiment", str(experiment), *overrides],
        "check": ["check", "--experiment", str(experiment), *overrides],
        "search": ["search", "--experiment", str(experiment), *overrides],
    }
    for deed in phase.does:
        if deed in known and (status := main(known[deed])):
            return status
    return 0


def _cells(
    phase: Phase, recipe: Recipe, cells: list[Cell], mine: list[Cell], arguments: argparse.Namespace
) -> int:
    """Carry out what a phase does of cells."""
    from rankdrift.studies.carry_out import STAGES
    from rankdrift.studies.cells import root_of
    from rankdrift.studies.pipeline import Way, compare_study, raise_first, run_part, score_bases

    root, stages = root_of(recipe), [stage for stage in STAGES if stage in phase.does]
    with signals.answered_by(stop):
        if "base" in phase.does:
            score_bases(mine)
        if stages:
            executor = executor_of(arguments, mine)
            way = Way(stages, restarts_of(arguments))
            raise_first(root, run_part(root, recipe, cells, executor, mine, way), len(mine))
        if "compare" in phase.does:
            compare_study(root, cells, arguments.lean)
        if "deploy" in phase.does:
            return _deploy(dict.fromkeys(str(cell.study.root) for cell in cells))
    return 0


def _deploy(studies: Iterable[str]) -> int:
    """Serve the models of each group, and report; return the exit code of the first that fails, or 0."""
    return next(
        (status for study in studies for part in ("deploy", "report") if (status := main([part, study]))), 0
    )
