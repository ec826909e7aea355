"""Draw a study's figures and write its report from the tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.cli._arguments import positive
from rankdrift.layout import StudyLayout
from rankdrift.progress import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder, which holds tables/")
    parser.add_argument(
        "--workers", type=positive, default=0, metavar="N", help="processes that draw (default: one a core)"
    )
    parser.add_argument("--again", action="store_true", help="also where nothing has changed since")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and say where it is; return 0. Raises UserError."""
    from rankdrift.analysis.report.build import build_report  # matplotlib loads here, not for --help
    from rankdrift.progress import progress_lines

    print(build_report(StudyLayout(arguments.study), progress_lines(say), arguments.again, arguments.workers))
    return 0
