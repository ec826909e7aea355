"""Say what runs will take before they are launched: batches, parameters, memory by ZeRO stage, disk, hours.

Nothing is trained or written, but that the base model and the prepared rows are put into the cache where they
are not yet. Memory is arithmetic (docs/planning.md has how near it comes); hours need --measure, which trains
a few steps of each arm on this machine, in a folder that is removed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.errors import UserError, require_known
from rankdrift.spec import Recipe, load_recipe

if TYPE_CHECKING:
    from rankdrift.planning.forecast import Forecast, Trial
    from rankdrift.studies.cells import Cell

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_experiment(parser)
    parser.add_argument("--arm", help="one of the recipe's arms, in full (default: all, a row each)")
    parser.add_argument("--seed", type=int, help="one of the seeds (default: all; of one arm the first)")
    parser.add_argument("--group", help="one of the recipe's groups (default: all)")
    parser.add_argument(
        "--measure", action="store_true", help="train a few steps of each arm here, for seconds and memory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Declare what says which study it is."""
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")
    add_machine(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def add_machine(parser: argparse.ArgumentParser, ranks: str = "--ranks") -> None:
    """Declare what cells that do not say so themselves are started with."""
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="DeepSpeed JSON (default: ZeRO-2)"
    )
    parser.add_argument(
        ranks, dest="ranks", type=int, metavar="N", help="processes a run (default: the GPUs, or 2 on a CPU)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Say it."""
    recipe = load_recipe(arguments.experiment, arguments.overrides)
    if arguments.seed is not None or arguments.arm is not None:
        seed = arguments.seed if arguments.seed is not None else recipe.seeds[0]
        recipe = recipe.model_copy(update={"seeds": (seed,)})
    cells = cells_from(recipe, arguments)
    if arguments.group is not None:
        require_known("group", arguments.group, recipe.groups)
        cells = [cell for cell in cells if cell.group == arguments.group]
    if arguments.arm is not None:
        require_known("arm", arguments.arm, recipe.arms)
        cells = [cell for cell in cells if cell.spec.arm == arguments.arm]
    tell(cells, arguments.measure, arguments.json)
    return 0


def cells_from(recipe: Recipe, arguments: argparse.Namespace) -> list[Cell]:
    """Return the cells of a recipe on the ranks that are asked for, or that this machine has."""
    if arguments.ranks is not None and arguments.ranks < 1:
        raise UserError(f"{arguments.ranks} ranks: a run has at least one rank; give 1 or more")
    from rankdrift.studies.cells import cells_of
    from rankdrift.studies.launcher import default_ranks  # torch takes seconds to import: check first

    return cells_of(recipe, arguments.config, arguments.ranks or default_ranks())


def tell(cells: Sequence[Cell], measure: bool, as_text_of_json: bool) -> None:
    """Print what cells will take; the first of each arm stands for its seeds."""
    from rankdrift.studies.study_plan import foreseen, tried

    forecasts = foreseen(cells)
    show(forecasts, tried(cells) if measure else {}, as_text_of_json)


def show(forecasts: Sequence[Forecast], trials: dict[str, Trial], as_text_of_json: bool = False) -> None:
    """Print what is expected of runs, as tables or as JSON."""
    from rich.console import Console

    from rankdrift.planning.tables import as_json, notes, settings, tables, untimed

    if as_text_of_json:
        print(json.dumps(as_json(forecasts, trials), indent=2))
        return
    console = Console()
    if len(forecasts) == 1:
        print(settings(forecasts[0]))
    for table in tables(forecasts, trials):
        console.print(table)
    for note in notes(forecasts):
        console.print(f"Note: {note}.", markup=False)
    if len(forecasts) > 1 and untimed(forecasts, trials):
        console.print("Hours are told by --measure; --arm NAME tells of one arm in full.")
