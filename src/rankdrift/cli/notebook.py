"""Write a notebook of a study and carry it out: rq1, weights and representations; rq2, cost of deployment.

  rankdrift notebook rq1 STUDY             to STUDY/notebooks: rq1.ipynb; figures and LaTeX tables in rq1/
  rankdrift notebook rq2 STUDY --no-run    the cells alone, to be changed and run by hand

They read the study's tables with pandas and need nothing of rankdrift. pip install 'rankdrift[notebook]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.layout import StudyLayout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="rq1 or rq2")
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder, which holds tables/")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where to write (default: notebooks, in the study's folder)"
    )
    parser.add_argument("--no-run", action="store_true", help="leave the cells to be run by hand")


def run(arguments: argparse.Namespace) -> int:
    """Write the notebook and say where it is; return 0. Raises UserError."""
    from rankdrift.analysis.report.notebook import write_notebook

    study = StudyLayout(arguments.study)
    output = arguments.to or study.notebooks
    print(write_notebook(arguments.name, study, output, not arguments.no_run))
    return 0
