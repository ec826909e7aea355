"""Measure weights, gradients and representations: of a study, or of any tuned folders against their base.

  rankdrift analyze --study STUDY [ANALYSIS ...]       tables of every stored step of all its runs
  rankdrift analyze --base A --tuned B [--tuned C]     the same of folders from anywhere
  rankdrift analyze compare RUN RUN [...]              runs of a study beside each other
  rankdrift analyze intervene RUN --step N             edit a step's intruder dimensions, and controls; score
  rankdrift analyze interpolate RUN --step N --at ...  score the line from the base model to a step
Under a launcher (torchrun, deepspeed --module rankdrift.cli.analyze) ranks share the work of the first two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rankdrift import registry
from rankdrift.analysis.worklist import Share
from rankdrift.cli.main import program
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="ANALYSIS",
        help="which analyses (default: all that apply); or compare, intervene or interpolate, and runs",
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
    parser.add_argument(
        "--initial",
        type=Path,
        help="the adapter before training, for those that change the base weights (PiSSA, OLoRA, ...)",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/analysis"), help="where tables go")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--step", type=int, help="of a run, for intervene and interpolate")
    parser.add_argument(
        "--at",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5, 0.75, 1.0, 1.25],
        metavar="T",
        help="interpolate: W0 + T (W - W0); 0 is the base, 1 the step",
    )
    parser.add_argument(
        "--strength", type=float, default=0.0, help="intervene: 0 removes, 0.7 shrinks to 0.7"
    )
    parser.add_argument("--top-k", type=int, default=10, help="intervene: leading vectors looked at")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="intervene: cosine below which is intruder"
    )
    parser.add_argument("--first-only", action="store_true", help="intervene: one intruder a matrix")
    parser.add_argument("--local_rank", type=int, help="given by the DeepSpeed launcher")


def run(arguments: argparse.Namespace) -> int:
    """Analyse."""
    if arguments.names and arguments.names[0] in ACTIONS:
        return ACTIONS[arguments.names[0]](arguments)
    for name in arguments.names:
        registry.require("analysis", name)
    if bool(arguments.study) == bool(arguments.base):
        raise UserError("give either --study FOLDER, or --base MODEL with --tuned FOLDER")
    for table in _of_study(arguments) if arguments.study else _of_folders(arguments):
        print(table)
    return 0


def _of_study(arguments: argparse.Namespace) -> list[Path]:
    from rankdrift.studies.pipeline import analyse_study

    study, share = StudyLayout(arguments.study), Share.of_environment()
    if not study.run_names():
        raise UserError(f"{study.runs}: no runs there; give the folder that holds 'runs/'")
    names = arguments.names or registry.names("analysis")
    return analyse_study(study, names, _say(share), arguments.source, share, arguments.workers)


def _of_folders(arguments: argparse.Namespace) -> list[Path]:
    from rankdrift.analysis.engine import run_analyses
    from rankdrift.models.base import resolve
    from rankdrift.spec import AnalysisSpec
    from rankdrift.studies.pipeline import progress_lines
    from rankdrift.studies.subjects import folder_params, folder_subjects

    if not arguments.tuned:
        raise UserError("--base needs at least one --tuned FOLDER to compare it with")
    known = [name for name in registry.names("analysis") if registry.load("analysis", name).of_folders]
    base, study, share = resolve(arguments.base), StudyLayout(arguments.output), Share.of_environment()
    params = folder_params(study, base, AnalysisSpec(workers=arguments.workers or 0))
    subjects = folder_subjects(base, arguments.tuned, arguments.initial)
    progress = progress_lines(_say(share))
    return run_analyses(arguments.names or known, subjects, study.tables, params, progress, share)


def _say(share: Share) -> Callable[[str], None]:
    """Return what says progress: rank 0 prints, the others are quiet."""
    return print if share.rank == 0 else lambda line: None


def _compare(arguments: argparse.Namespace) -> int:
    from rankdrift.studies.compare import compare

    runs = [_run(name) for name in arguments.names[1:]]
    if len(runs) < 2:
        raise UserError("compare: give two or more run folders of one study")
    for line in compare(runs, print):
        print(line)
    return 0


def _intervene(arguments: argparse.Namespace) -> int:
    from rankdrift.studies.variants import Settings, intervene

    settings = Settings(arguments.strength, arguments.top_k, arguments.threshold, arguments.first_only)
    return _variants(arguments, lambda run, step: intervene(run, step, settings, print))


def _interpolate(arguments: argparse.Namespace) -> int:
    from rankdrift.studies.variants import interpolate

    return _variants(arguments, lambda run, step: interpolate(run, step, arguments.at, print))


def _variants(arguments: argparse.Namespace, make: Callable[[RunLayout, int], list[Path]]) -> int:
    """Make and score the edited models of each run's step, its last one by default."""
    if len(arguments.names) < 2:
        raise UserError(f"{arguments.names[0]}: give the folder of one or more runs")
    from rankdrift.studies.subjects import stored_steps

    for run in map(_run, arguments.names[1:]):
        steps = sorted(stored_steps(run))
        if not steps or arguments.step not in (None, *steps):
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{run.root}: step {arguments.step} is not stored (there: {known})")
        for path in make(run, steps[-1] if arguments.step is None else arguments.step):
            print(path)
    return 0


def _run(name: str) -> RunLayout:
    run = RunLayout(Path(name))
    if not run.spec.exists():
        raise UserError(f"{run.root}: not a run's folder (no {run.spec.name}); give STUDY/runs/RUN")
    return run


ACTIONS = {"compare": _compare, "intervene": _intervene, "interpolate": _interpolate}
"""First word -> what else than the analyses is done."""

if __name__ == "__main__":
    program(["analyze", *sys.argv[1:]])
