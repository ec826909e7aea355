"""Measure weights, gradients and representations: of a study, or of any tuned folders against their base.

  rankdrift analyze [ANALYSIS ...] --study STUDY       tables of every stored step of all its runs
  rankdrift analyze [ANALYSIS ...] --base A --tuned B  the same of folders from anywhere; --tuned C for more
  rankdrift analyze compare RUN RUN [...]              runs of a study beside each other
  rankdrift analyze intervene RUN [...] --step N       edit a step's intruder dimensions, and controls; score
  rankdrift analyze interpolate RUN [...] --at 0 0.5 1 score the line from the base model to a step

Analyses of any folders:   spectra, task_vectors (weights), drift (hidden states), checkpoint_gradients
And of a study:            training, gradients, probes, forecasts (recorded while training), performance
                           (scores), variants (edited models), comparisons, seed_contrasts, item_contrasts,
                           predictors, searches, deployment

Tables go to STUDY/tables or OUTPUT/tables; 'rankdrift report' draws them. What is up to date is not measured
again. One process of this command is enough: it uses all cores and GPUs of a machine. Over several machines
each measures what it has trained ('rankdrift study run --ray', 'rankdrift phase').
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift import registry
from rankdrift.cli.main import program
from rankdrift.errors import NotApplicableError, UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.progress import say

if TYPE_CHECKING:  # torch takes seconds to import, and other commands read this file for its help
    from rankdrift.analysis.contract import Params
    from rankdrift.analysis.sources.subjects import Subject
    from rankdrift.studies.study_checkpoints import Source

OUTPUT = Path("outputs/analysis")
POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
EDITS = ("strength", "top_k", "threshold", "first_only")
"""The options that ``variants.Settings`` has under the same names, with its defaults."""
OPTIONS: dict[str, tuple[str, ...]] = {
    "--study": ("study", "source", "workers"),
    "--base": ("base", "tuned", "initial", "output", "workers"),
    "compare": (),
    "intervene": ("step", *EDITS),
    "interpolate": ("step", "at"),
}
"""What is done -> the options it reads; every other one is refused, for it would be ignored."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; what is not given is None."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="ANALYSIS",
        help="which analyses (default: all that apply); or compare, intervene, interpolate, then runs",
    )
    _add_inputs(parser)
    edits = parser.add_argument_group("intervene and interpolate")
    edits.add_argument("--step", type=int, metavar="N", help="which step of the runs (default: the last)")
    edits.add_argument(
        "--at",
        type=float,
        nargs="+",
        metavar="T",
        help="interpolate: W0 + T (W - W0); 0 is the base, 1 the step (default: "
        f"{' '.join(map(str, POSITIONS))})",
    )
    edits.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="intervene: intruders' singular values are multiplied with it, 0 <= S < 1 (default: 0, removed)",
    )
    edits.add_argument("--top-k", type=int, metavar="K", help="intervene: leading vectors looked at (10)")
    edits.add_argument(
        "--threshold", type=float, metavar="C", help="intervene: cosine below which is intruder (0.5)"
    )
    edits.add_argument(
        "--first-only", action="store_true", default=None, help="intervene: one intruder a matrix"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by DeepSpeed's launcher


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    study = parser.add_argument_group("of a study")
    study.add_argument(
        "--study", type=Path, metavar="STUDY", help="its folder: every stored step of all its runs"
    )
    study.add_argument(
        "--source",
        choices=("auto", "exports", "checkpoints"),
        help="what steps are read from; auto (default): a step's fp32 export, else its sharded checkpoint",
    )
    folders = parser.add_argument_group("of folders from anywhere")
    folders.add_argument(
        "--base", metavar="A", help="base model: a folder, a hub id, a .gguf file or a known name"
    )
    folders.add_argument(
        "--tuned",
        type=Path,
        action="append",
        metavar="B",
        help="folder of a model, an adapter or a checkpoint; once for each",
    )
    folders.add_argument(
        "--initial",
        type=Path,
        metavar="I",
        help="the adapter before training, for those that change the base weights (PiSSA, OLoRA, ...)",
    )
    folders.add_argument("--output", type=Path, help=f"where tables go (default: {OUTPUT})")
    both = parser.add_argument_group("of either")
    both.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a core; at most four a GPU where there are GPUs)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked; return 0. Raises UserError."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"analyze was started as {os.environ['WORLD_SIZE']} ranks; start it once, without a launcher: "
            "it uses all cores and GPUs of its machine"
        )
    asked = _asked(arguments)
    _refuse_other_options(asked, arguments)
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give 1 or more processes, or leave it out")
    for line in ACTIONS[asked](arguments):
        print(line, flush=True)
    return 0


def _asked(arguments: argparse.Namespace) -> str:
    """Return which of ``OPTIONS`` it is; raise UserError unless it is one of them."""
    names: list[str] = arguments.names
    if names and names[0] in OPTIONS:
        return names[0]
    known = registry.names("analysis")
    for name in names:
        if name not in known and Path(name).is_dir():
            raise UserError(
                f"{name} is a folder, not an analysis: give --study {name}, or --base MODEL --tuned {name}"
            )
        registry.require("analysis", name)
    if (arguments.study is None) == (arguments.base is None):
        raise UserError("give either --study FOLDER, or --base MODEL with --tuned FOLDER")
    return "--base" if arguments.study is None else "--study"


def _refuse_other_options(asked: str, arguments: argparse.Namespace) -> None:
    every = {option for options in OPTIONS.values() for option in options}
    for option in sorted(every.difference(OPTIONS[asked])):
        if getattr(arguments, option) is not None:
            readers = " and ".join(name for name, options in OPTIONS.items() if option in options)
            raise UserError(
                f"--{option.replace('_', '-')}: {asked} does not read it, {readers} would; leave it out"
            )


def _of_study(arguments: argparse.Namespace) -> Iterator[Path]:
    from rankdrift.studies.pipeline import analyse_study

    study = StudyLayout(arguments.study)
    if not study.run_names():
        raise UserError(f"{study.runs}: no runs there; give the folder that holds 'runs/'")
    _require_writable(study.root, "--study")
    names = arguments.names or registry.names("analysis")
    source: Source = arguments.source or "auto"
    yield from analyse_study(study, names, say, source, arguments.workers)


def _of_folders(arguments: argparse.Namespace) -> Iterator[Path]:
    from rankdrift.analysis.engine import run_analyses
    from rankdrift.progress import progress_lines

    if not arguments.tuned:
        raise UserError("--base needs at least one --tuned FOLDER to compare it with")
    names = _of_any_folder(arguments.names)
    subjects = _given_subjects(names, arguments)
    study = _output(arguments)
    names, params = _folder_params(
        names, study, subjects[0].base, arguments.workers or 0, bool(arguments.names), say
    )
    progress = progress_lines(say)
    for line in _sources(subjects):
        say(line)
    for name in names:  # one after the other: what is done is said, whatever becomes of the next
        try:
            yield from run_analyses([name], subjects, study.tables, params, progress)
        except NotApplicableError as error:
            if arguments.names:
                raise
            say(f"{name}: left out; {error}")
    for line in _drowned(study):
        say(line)


def _sources(subjects: Sequence[Subject]) -> Iterator[str]:
    """Yield which weights are read of folders that hold the shards of a training beside a rounded model."""
    from rankdrift.zero_checkpoint.trainer_folder import trainer_folder

    for subject in subjects:
        if subject.tuned and (others := trainer_folder(subject.tuned)):
            yield f"{subject.run}: the fp32 masters in {others.shards}, as step {subject.step}"


def _drowned(study: StudyLayout) -> Iterator[str]:
    """Yield a warning for each folder whose updates are mostly what storing its weights rounded."""
    from rankdrift import files
    from rankdrift.analysis.measures.spectra import MOSTLY_ROUNDING

    path = study.tables / "svd_analysis_results.parquet"
    if not path.is_file():
        return
    rows = files.read_table(path)
    for run, of_run in rows[rows["noise_floor_ratio"] < MOSTLY_ROUNDING].groupby("run"):
        yield (
            f"warning: {run}: {len(of_run)} of {(rows['run'] == run).sum()} updates are mostly what storing "
            "the weights rounded: their ranks are those of noise. Give fp32 weights: the sharded checkpoint "
            "that these were saved beside, or the adapter"
        )


def _given_subjects(names: Sequence[str], arguments: argparse.Namespace) -> list[Subject]:
    """Return the base and the tuned folders as subjects; raise UserError where one is none, or not of it."""
    from rankdrift.models.base import resolve
    from rankdrift.studies.study_checkpoints import folder_subjects

    _refuse_as_base(Path(arguments.base).expanduser())
    base = resolve(arguments.base)
    for folder in arguments.tuned:
        _require_folder("--tuned", folder)
    if arguments.initial:
        _require_folder("--initial", arguments.initial)
    subjects = folder_subjects(base, arguments.tuned, arguments.initial)
    _require_fit(names, base, subjects)
    return subjects


def _output(arguments: argparse.Namespace) -> StudyLayout:
    study = StudyLayout(arguments.output or OUTPUT)
    if study.run_names():
        raise UserError(f"--output {study.root}: a study, whose tables would be lost; give another folder")
    _require_writable(study.root, "--output")
    return study


def _of_any_folder(names: Sequence[str]) -> list[str]:
    """Return the analyses to make of folders, those of weights first; raise UserError for one of runs."""
    known = [name for name in registry.names("analysis") if registry.load("analysis", name).of_folders]
    of_runs = [name for name in names if name not in known]
    if of_runs:
        raise UserError(
            f"{of_runs[0]}: is made of a study's runs, not of folders; give --study, or one of "
            f"{', '.join(known)}"
        )
    return sorted(dict.fromkeys(names or known), key=_reads_text)


def _reads_text(name: str) -> bool:
    """Return whether an analysis puts inputs through the models; else it is one of their matrices."""
    return registry.load("analysis", name).rows is not None


def _folder_params(
    names: list[str], study: StudyLayout, base: Path, workers: int, asked: bool, say: Callable[[str], None]
) -> tuple[list[str], Params]:
    """Return the analyses to make, and their settings.

    A base without a tokenizer will do for those that read no text: of all that there are, these are made and
    the others named; one that was ``asked`` for is not left out.
    """
    from rankdrift.spec import AnalysisSpec
    from rankdrift.studies.study_checkpoints import folder_params

    settings = AnalysisSpec(workers=workers)
    needless = [name for name in names if not _reads_text(name)]
    if needless != names:
        try:
            return names, folder_params(study, base, settings)
        except UserError as error:
            if asked or not needless:
                others = " ".join(name for name in _of_any_folder(()) if not _reads_text(name))
                raise UserError(f"{error}; or name the analyses that read no text: {others}") from None
            left_out = ", ".join(name for name in names if name not in needless)
            say(f"{left_out}: left out; {error}")
    return needless, folder_params(study, None, settings)


def _refuse_as_base(given: Path) -> None:
    """Raise UserError where the base is there, but no model of its own."""
    from rankdrift.analysis.sources.checkpoints import is_checkpoint
    from rankdrift.analysis.sources.tensors import ADAPTER_CONFIG, MODEL_CONFIG

    if given.is_file() and given.suffix != ".gguf":
        raise UserError(f"--base {given}: a file; give the folder of the model")
    if (given / ADAPTER_CONFIG).is_file() and not (given / MODEL_CONFIG).is_file():
        raise UserError(f"--base {given}: an adapter; give it as --tuned, and the model it adapts as --base")
    if given.is_dir() and is_checkpoint(given):
        raise UserError(f"--base {given}: a sharded checkpoint; consolidate it, and give the export")


def _require_folder(option: str, folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{option} {folder}: a file; give the folder it lies in")
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: no such folder; check the path")


def _require_writable(folder: Path, option: str) -> None:
    """Raise UserError unless files can be made in a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {folder}: nothing can be written there ({error.strerror}); give another folder, or "
            "make this one writable"
        ) from None


def _require_fit(names: Sequence[str], base: Path, subjects: Sequence[Subject]) -> None:
    """Raise UserError before anything is measured where a tuned folder is not of the base."""
    from rankdrift import files
    from rankdrift.analysis.sources.folders import is_adapter, recorded_base
    from rankdrift.analysis.sources.opened_weights import weights_of

    start, tuned = recorded_base(base), [subject.tuned for subject in subjects if subject.tuned]
    for folder in tuned:
        if start and not is_adapter(folder) and files.weights_digest(folder) == start.digest:
            raise UserError(f"--base {base}: was tuned from --tuned {folder}; swap the two")
    if not all(map(_reads_text, names)):
        for subject in subjects:
            if subject.tuned:
                weights_of(subject)


def _compare(arguments: argparse.Namespace) -> Iterator[str]:
    from rankdrift.studies.compare import compare

    runs = _runs(arguments)
    if len(runs) < 2:
        raise UserError(f"compare {runs[0].root}: give two or more run folders of one study")
    yield from compare(runs, say)


def _intervene(arguments: argparse.Namespace) -> Iterator[Path]:
    from rankdrift.studies.edited_models import Settings, intervene

    given = {name: getattr(arguments, name) for name in EDITS}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    return _variants(arguments, lambda run, step: intervene(run, step, settings, say))


def _interpolate(arguments: argparse.Namespace) -> Iterator[Path]:
    from rankdrift.studies.edited_models import interpolate

    positions = arguments.at or POSITIONS
    return _variants(arguments, lambda run, step: interpolate(run, step, positions, say))


def _variants(arguments: argparse.Namespace, make: Callable[[RunLayout, int], list[Path]]) -> Iterator[Path]:
    """Make and score the edited models of each run's step, its last one by default."""
    steps = [(run, _step(run, arguments.step)) for run in _runs(arguments)]
    for run, step in steps:
        yield from make(run, step)


def _step(run: RunLayout, wanted: int | None) -> int:
    from rankdrift.studies.study_checkpoints import stored_steps

    steps = sorted(stored_steps(run))
    if not steps:
        raise UserError(f"{run.root}: no step of it is stored; train it first")
    if wanted not in (None, *steps):
        raise UserError(f"{run.root}: step {wanted} is not stored (there: {', '.join(map(str, steps))})")
    return steps[-1] if wanted is None else wanted


def _runs(arguments: argparse.Namespace) -> list[RunLayout]:
    """Return the runs named after the action; raise UserError unless each is a study's, and named once."""
    action, *names = arguments.names
    if not names:
        raise UserError(f"{action}: give the folder of one or more runs, STUDY/runs/RUN")
    runs = [RunLayout(Path(name).resolve()) for name in names]
    for run in runs:
        if not run.spec.exists():
            raise UserError(f"{run.root}: not a run's folder (no {run.spec.name}); give STUDY/runs/RUN")
        if StudyLayout(run.root.parent.parent).runs != run.root.parent:
            raise UserError(f"{run.root}: not in a study; a run's folder lies in STUDY/runs")
    if len(set(runs)) < len(runs):
        raise UserError(f"{action}: a run is named twice ({', '.join(names)}); name each once")
    return runs


ACTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Path] | Iterator[str]]] = {
    "--study": _of_study,
    "--base": _of_folders,
    "compare": _compare,
    "intervene": _intervene,
    "interpolate": _interpolate,
}

if __name__ == "__main__":
    program(["analyze", *sys.argv[1:]])
