"""Try an experiment before it is launched in earnest: few steps of every arm, on its own model and data.

  model      loads, is finite, has so many parameters
  data       tokens are the model's, labels are in range, every row has a target
  method     trains as many parameters as its settings say by the shapes of the modules
  gradients  all that trains gets a finite gradient, nothing else any
  overfit    ten rows are learnt by heart, to a loss below 0.1
  logging    metrics.jsonl and TensorBoard have the loss of every step
  seeds      a seed gives its losses again, to the bit; another one gives others
  reload     a checkpoint is consolidated, and plain transformers and PEFT give the trained model's logits
What is not run, since another check failed, is not passed. Runs are small ones in a temporary folder, at the
recipe's settings but for rows, steps, learning rate and phases. Exit code 1 if anything fails.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rankdrift import signals
from rankdrift.errors import UserError
from rankdrift.spec import load_recipe

if TYPE_CHECKING:
    from rankdrift.sanity.results import Result

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"
FEWEST_STEPS = 10
MARKS = {"passed": "[green]passed[/]", "failed": "[red]failed[/]", "not run": "[yellow]not run[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="DeepSpeed JSON (default: ZeRO-2)"
    )
    parser.add_argument("--ranks", type=int, help="processes (default: the GPUs, or 2 on a CPU)")
    parser.add_argument(
        "--arm", action="append", help="only this one of the recipe's arms; may be given again"
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="most steps to learn ten rows in (default: 100)"
    )
    parser.add_argument(
        "--learning-rate", type=float, help="for that (default: by the method and the model's width)"
    )
    parser.add_argument("--json", action="store_true", help="print a list instead of the table")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Check, print what is found as a table; return 1 where something failed."""
    if arguments.steps < FEWEST_STEPS:
        raise UserError(f"--steps {arguments.steps}: give at least {FEWEST_STEPS}, or nothing can be learnt")
    if arguments.ranks is not None and arguments.ranks < 1:
        raise UserError(f"--ranks {arguments.ranks}: give at least 1")
    if arguments.learning_rate is not None and not arguments.learning_rate > 0:
        raise UserError(f"--learning-rate {arguments.learning_rate}: give one above 0")
    recipe = load_recipe(arguments.experiment, arguments.overrides)
    specs = [recipe.spec(arm) for arm in arguments.arm or recipe.arms]
    import dataclasses  # torch takes seconds to import: check first
    import json
    import tempfile

    from rankdrift.sanity.trying import Manner, try_experiment
    from rankdrift.studies.launcher import default_ranks

    ranks = arguments.ranks or default_ranks()
    manner = Manner(arguments.config, ranks, arguments.steps, arguments.learning_rate)
    with signals.answered_by(_interrupt), tempfile.TemporaryDirectory(prefix="rankdrift-check-") as folder:
        found = try_experiment(specs, manner, Path(folder))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(result) for result in found], indent=2))
    else:
        _print(found)
    return int(any(result.state == "failed" for result in found))


def _print(found: list[Result]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("check", "arm", "result", "what was seen", Column("seconds", justify="right"))
    for result in found:
        seconds = f"{result.seconds:.1f}" if result.state != "not run" else ""
        table.add_row(result.check, escape(result.arm), MARKS[result.state], escape(result.what), seconds)
    Console().print(table)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End at once, the temporary folder with it; between two starts of ranks, which the launcher answers."""
    if number in signals.STOP:
        raise KeyboardInterrupt
