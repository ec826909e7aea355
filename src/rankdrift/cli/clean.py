"""Remove from a study what can be made again: caches, exports of stored checkpoints, edited models.

Tables, scores, figures, the report and everything a run was trained to stay. The next 'rankdrift study run'
or 'consolidate' makes again what it needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.layout import StudyLayout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder")
    parser.add_argument("--keep-exports", action="store_true", help="leave the exports where they are")
    parser.add_argument(
        "--checkpoints",
        action="store_true",
        help="remove checkpoints of exported steps before each run's last as well, and keep their exports",
    )


def run(arguments: argparse.Namespace) -> int:
    """Remove it; say what, and how much is free."""
    from rankdrift.studies.clean import clean

    freed = clean(StudyLayout(arguments.study), arguments.keep_exports, arguments.checkpoints, print)
    print(f"{freed / 1e9:.2f} GB removed in all")
    return 0
