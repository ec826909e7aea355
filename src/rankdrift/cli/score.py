"""Score a run's exported checkpoints: task metrics, and retention on general text."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.layout import RunLayout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, <output>/<study>/runs/<run>")
    parser.add_argument("--step", type=int, action="append", default=[], help="which step (default: all)")
    parser.add_argument("--base", action="store_true", help="score the base model too, in <study>/base")


def run(arguments: argparse.Namespace) -> int:
    """Score what has no scores yet."""
    from rankdrift.scoring.run import score_run  # imports torch, which a command's help need not wait for

    score_run(RunLayout(arguments.run), arguments.step, arguments.base, progress=print)
    return 0
