"""Run a whole study: train, consolidate, score, analyse and report every arm of a recipe.

What is done is not done again: a study that was interrupted goes on when the same command is run again.
A rank that is lost ends its run, by name (exit code 4; 1 where it failed by an error of its own), unless
--max-restarts lets it go on. SIGTERM or Ctrl-C saves the training under way and stops (exit code 75),
SIGUSR1 saves it and goes on.
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
    parser.add_argument(
        "--max-restarts",
        type=_count,
        default=0,
        metavar="N",
        help="start a run whose rank is lost or fails again, from its last checkpoint, so many times "
        "(default: 0); not one that has made no step since",
    )
    parser.add_argument(
        "--elastic", action="store_true", help="restart with one rank less, not on the GPU of the failed one"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Run the study."""
    recipe = load_recipe(arguments.experiment, arguments.overrides)
    from rankdrift.studies.launcher import default_ranks  # torch takes seconds to import: check first
    from rankdrift.studies.pipeline import Launch, run_study
    from rankdrift.studies.restarts import Restarts

    ranks = arguments.ranks or default_ranks()
    restarts = Restarts(arguments.max_restarts, arguments.elastic)
    start = Launch(arguments.config, ranks, arguments.experiment, arguments.lean, restarts)
    with signals.answered_by(_stop):  # while it trains, the launcher answers
        run_study(recipe, start)
    return 0


def _count(text: str) -> int:
    """Return a number that is not negative."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _stop(number: int, frame: FrameType | None) -> None:
    if number in signals.STOP:
        raise Preempted("run the same command again to go on")
