"""Search settings for every arm of a recipe, learning rates above all, before its study: equal budgets.

  rankdrift search --experiment RECIPE            as many trials of each arm, by TPE, pruned by the median
  rankdrift search --experiment RECIPE --show     what was tried so far

The recipe's section 'search' says over which ranges and by which validation value (docs/studies.md). What is
found is written to <study>/search/best.yaml, which 'rankdrift study run' reads. A search that was interrupted
goes on when the same command is run again; more --trials are added to those there are.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rankdrift import signals
from rankdrift.cli.plan import add_experiment, cells_from
from rankdrift.cli.study import add_ray, executor_of, stop
from rankdrift.errors import UserError
from rankdrift.spec import Recipe, load_recipe

if TYPE_CHECKING:  # torch takes seconds to import: check first
    from rankdrift.studies.search.ledger import Ledger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_experiment(parser)
    parser.add_argument(
        "--trials", type=int, metavar="N", help="trials of each arm (default: the recipe's, 20)"
    )
    parser.add_argument(
        "--slots",
        type=int,
        metavar="N",
        help="ranks at a time on this machine (default: its GPUs; on a CPU one trial's)",
    )
    add_ray(parser)
    parser.add_argument("--show", action="store_true", help="say what was tried so far, and try nothing")


def run(arguments: argparse.Namespace) -> int:
    """Search."""
    from rankdrift.spec.searched import require_not_overridden, searched_arms

    recipe = _with_trials(load_recipe(arguments.experiment, arguments.overrides), arguments.trials)
    arms = searched_arms(recipe)
    require_not_overridden(recipe, arms)
    cells = cells_from(recipe, arguments)
    from rankdrift.studies.search import proposals
    from rankdrift.studies.search.ledger import Ledger

    if arguments.show:
        _show(Ledger(arms))
        return 0
    proposals.require()
    from rankdrift.studies.cells import root_of
    from rankdrift.studies.search.run import run_search

    executor = executor_of(arguments, cells)
    with signals.answered_by(stop):  # while it trains, the launcher answers
        run_search(root_of(recipe), arms, cells, executor)
    _show(Ledger(arms))
    return 0


def _with_trials(recipe: Recipe, trials: int | None) -> Recipe:
    """Return the recipe with another number of trials."""
    if trials is None or recipe.search is None:
        return recipe
    if trials < 2:
        raise UserError(f"--trials {trials}: one trial is no search; give 2 or more")
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"trials": trials})})


def _show(ledger: Ledger) -> None:
    from rich.console import Console

    from rankdrift.studies.search.tables import arms_table

    Console().print(arms_table(ledger))
