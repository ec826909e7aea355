"""Turn a run's sharded checkpoints into model or adapter folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.layout import RunLayout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder: .../runs/<arm>-seed<seed>")
    parser.add_argument(
        "--step", type=int, action="append", metavar="N", help="a step to export (repeatable; default: all)"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="dtype of the exports")


def run(arguments: argparse.Namespace) -> int:
    """Export the checkpoints, a line a tenth of the way; return 0. Raises UserError."""
    from rankdrift.checkpoint.consolidate import consolidate_run  # torch loads here, not for --help

    layout = RunLayout(arguments.run)
    consolidate_run(layout, arguments.step, dtype=arguments.dtype, progress=print)
    return 0
