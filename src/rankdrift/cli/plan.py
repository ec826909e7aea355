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

from rankdrift.spec import Spec, analysis_settings, load_recipe

if TYPE_CHECKING:
    from rankdrift.planning.forecast import Forecast, Trial

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="DeepSpeed JSON (default: ZeRO-2)"
    )
    parser.add_argument("--ranks", type=int, help="processes a run (default: the GPUs, or 2 on a CPU)")
    parser.add_argument("--arm", help="one of the recipe's arms, in full (default: all, a row each)")
    parser.add_argument("--seed", type=int, help="one of the seeds (default: all; of one arm the first)")
    parser.add_argument(
        "--measure", action="store_true", help="train a few steps of each arm here, for seconds and memory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Say it."""
    from rankdrift.errors import UserError

    recipe = load_recipe(arguments.experiment, arguments.overrides)
    if arguments.ranks is not None and arguments.ranks < 1:
        raise UserError(f"--ranks {arguments.ranks}: a run has at least one rank; give 1 or more")
    specs = recipe.runs()
    if arguments.arm is not None or len(specs) == 1:
        specs = [recipe.spec(arguments.arm, arguments.seed)]
    elif arguments.seed is not None:
        specs = [recipe.spec(arm, arguments.seed) for arm in recipe.arms]
    for spec in specs:
        analysis_settings(spec.analysis)
    from rankdrift.studies.launcher import default_ranks  # torch takes seconds to import: check first

    ranks = arguments.ranks or default_ranks()
    forecasts = _foreseen(specs, arguments.config, ranks)
    trials = _tried(specs, arguments.config, ranks) if arguments.measure else {}
    show(forecasts, trials, arguments.json)
    return 0


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


def _foreseen(specs: Sequence[Spec], config: Path, ranks: int) -> list[Forecast]:
    from rankdrift.training.forecast import foresee

    found: list[Forecast] = []
    for spec in specs:
        found.append(foresee(spec, config, ranks, found[0].baseline if found else None))
    return found


def _tried(specs: Sequence[Spec], config: Path, ranks: int) -> dict[str, Trial]:
    """Try the first run of each arm; the others differ in the seed alone."""
    from rankdrift.studies.trial import trial

    of_arms: dict[str, Trial] = {}
    for spec in specs:
        if spec.arm not in of_arms:
            of_arms[spec.arm] = trial(spec, config, ranks)
    return {spec.run_name: of_arms[spec.arm] for spec in specs}
