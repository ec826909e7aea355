"""Write a study's tables for others: LaTeX for a paper, CSV for a spreadsheet, Croissant to publish them.

  rankdrift export STUDY                 all of it, to STUDY/export: latex/, csv/, croissant.json with tables/
  rankdrift export STUDY --latex         the report's tables, with booktabs' rules; all.tex typesets them all
  rankdrift export STUDY --csv           every table whole, and columns.csv: what each column means
  rankdrift export STUDY --croissant --license CC-BY-4.0

Weights are exported by 'rankdrift consolidate', a study without its weights by 'rankdrift study export'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.layout import StudyLayout

FORMATS = {
    "latex": "the report's tables as LaTeX",
    "csv": "every table as CSV, and what the columns mean",
    "croissant": "the tables with a description in Croissant",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder, which holds tables/")
    for name, what in FORMATS.items():
        parser.add_argument(f"--{name}", action="store_true", help=what)
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where to write (default: export, in the study's folder)"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="croissant: licence of the tables, as an SPDX name or a URL"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write what is asked for and say where it is; return 0. Raises UserError."""
    from rankdrift.analysis.report.croissant import write_croissant
    from rankdrift.analysis.report.latex import write_latex
    from rankdrift.analysis.report.study import read_study
    from rankdrift.analysis.report.table_files import write_csv

    study = StudyLayout(arguments.study)
    folder = arguments.to or study.published
    asked = [name for name in FORMATS if getattr(arguments, name)] or list(FORMATS)
    if "latex" in asked:
        print(write_latex(read_study(study), folder / "latex")[-1])
    if "csv" in asked:
        print(write_csv(study, folder / "csv")[-1].parent)
    if "croissant" in asked:
        print(write_croissant(study, folder, arguments.license))
    return 0
