"""Measure weights, gradients and representations: of a study, or of any tuned folders against their base."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "names", nargs="*", metavar="ANALYSIS", help="which analyses (default: all that apply)"
    )
    parser.add_argument("--study", type=Path, help="a study's folder: every stored step of all its runs")
    parser.add_argument(
        "--source",
        choices=("auto", "exports", "checkpoints"),
        default="auto",
        help="what a study's steps are read from; auto: a step's fp32 export, else its sharded checkpoint",
    )
    parser.add_argument("--base", help="base model: a folder, a hub id, a .gguf file or a known name")
    parser.add_argument(
        "--tuned",
        type=Path,
        action="append",
        default=[],
        help="folder of a model, an adapter or a checkpoint",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/analysis"), help="where tables go")


def run(arguments: argparse.Namespace) -> int:
    """Analyse."""
    for name in arguments.names:
        registry.require("analysis", name)
    if bool(arguments.study) == bool(arguments.base):
        raise UserError("give either --study FOLDER, or --base MODEL with --tuned FOLDER")
    tables = _of_study(arguments) if arguments.study else _of_folders(arguments)
    for table in tables:
        print(table)
    return 0


def _of_study(arguments: argparse.Namespace) -> list[Path]:
    from rankdrift.studies.pipeline import analyse_study

    study = StudyLayout(arguments.study)
    if not study.run_names():
        raise UserError(f"{study.runs}: no runs there; give the folder that holds 'runs/'")
    names = arguments.names or registry.names("analysis")
    return analyse_study(study, names, print, arguments.source)


def _of_folders(arguments: argparse.Namespace) -> list[Path]:
    from rankdrift.analysis.engine import run_analyses
    from rankdrift.models.base import resolve
    from rankdrift.spec import AnalysisSpec
    from rankdrift.studies.pipeline import progress_lines
    from rankdrift.studies.subjects import folder_params, folder_subjects

    if not arguments.tuned:
        raise UserError("--base needs at least one --tuned FOLDER to compare it with")
    known = [
        name for name in registry.names("analysis") if registry.load("analysis", name).per == "checkpoint"
    ]
    base, study = resolve(arguments.base), StudyLayout(arguments.output)
    params = folder_params(study, base, AnalysisSpec())
    subjects = folder_subjects(base, arguments.tuned)
    return run_analyses(arguments.names or known, subjects, study.tables, params, progress_lines(print))
