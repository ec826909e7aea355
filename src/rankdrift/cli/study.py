"""Run a whole study: train, consolidate, score, analyse and report every arm of a recipe.

What is done is not done again: a study that was interrupted goes on when the same command is run again.
SIGTERM or Ctrl-C saves the training under way and stops (exit code 75), SIGUSR1 saves it and goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import FrameType

from rankdrift import signals
from rankdrift.errors import Preempted
from rankdrift.spec import load_recipe

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="DeepSpeed JSON (default: ZeRO-2)"
    )
    parser.add_argument("--ranks", type=int, help="processes a run (default: the GPUs, or 2 on a CPU)")
    parser.add_argument(
        "--lean",
        action="store_true",
        help="at the end remove caches, and checkpoints of exported steps before each run's last",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Run the study."""
    recipe = load_recipe(arguments.experiment, arguments.overrides)
    from rankdrift.studies.launcher import default_ranks  # torch takes seconds to import: check first
    from rankdrift.studies.pipeline import Launch, run_study

    start = Launch(arguments.config, arguments.ranks or default_ranks(), arguments.experiment, arguments.lean)
    with signals.answered_by(_stop):  # while it trains, the launcher answers
        run_study(recipe, start)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    if number in signals.STOP:
        raise Preempted("run the same command again to go on")
