"""Put studies of other models or data side by side: the same quantities, and whether they agree on the arms.

  rankdrift compare STUDY STUDY [STUDY ...]    to outputs/comparison: a page, quantities.csv, contrasts.csv

Values of one study are not compared with another's: base model or data differ. What is compared is what each
finds between its arms. Whether scoring itself moved between them is looked up: beside every checkpoint a
frozen reference model was scored. Runs of one study: 'rankdrift analyze compare RUN RUN'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FOLDER = Path("outputs/comparison")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "studies", nargs="+", type=Path, metavar="STUDY", help="studies' folders, at least two"
    )
    parser.add_argument(
        "--to", type=Path, default=FOLDER, metavar="FOLDER", help=f"where to write (default: {FOLDER})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print its differences; return 0. Raises UserError."""
    from rankdrift.analysis.report.markdown import grid_lines
    from rankdrift.analysis.report.overview import build_comparison, named_studies

    page, together = build_comparison(named_studies(arguments.studies), arguments.to)
    for warning in together.warnings:
        print(f"rankdrift compare: warning: {warning}", file=sys.stderr)
    for grid in (together.about, *together.contrast_grids()):
        print("\n".join(grid_lines(grid.caption, grid)))
    print(page)
    return 0
