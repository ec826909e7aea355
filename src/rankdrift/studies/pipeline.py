"""A study from recipe to report. Each stage skips what is done, so a killed study continues where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankdrift import files, registry
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.report.build import build_report
from rankdrift.analysis.worklist import Share
from rankdrift.data.dataset import load_rows
from rankdrift.data.identity import run_identity
from rankdrift.data.length import with_steps
from rankdrift.data.mixture import Mixture
from rankdrift.errors import UserError
from rankdrift.export.consolidate import consolidate_run
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import load_tokenizer, resolve
from rankdrift.progress import Say, progress_lines
from rankdrift.scoring.run import score_run
from rankdrift.spec import DEFAULT_RECIPE, Recipe, Spec, analysis_settings, read_spec
from rankdrift.spec.identity import differences, recorded
from rankdrift.studies.clean import clean
from rankdrift.studies.restarts import NONE, Restarts, launch_to_the_end
from rankdrift.studies.study_checkpoints import Source, study_params, study_subjects
from rankdrift.zero_checkpoint.manifest import complete_steps

REMEDY = "choose another study (study=NAME), or delete it"


@dataclass(frozen=True)
class Launch:
    """How the runs of a study are started."""

    config: Path
    """DeepSpeed JSON."""
    ranks: int
    recipe: Path | None
    """The recipe's file; None is the demo's."""
    lean: bool = False
    """Whether what a finished study needs no more is removed."""
    restarts: Restarts = NONE
    """What is done where a rank fails."""


def run_study(recipe: Recipe, start: Launch, say: Say = print) -> Path:
    """Train, consolidate and score every run, analyse them together, and return the report's path."""
    specs = recipe.runs()
    _refuse_one_name(specs)
    for spec in specs:
        analysis_settings(spec.analysis)
    study = StudyLayout(specs[0].study_root)
    with _stage(f"base model {specs[0].model.name} (fetched and converted the first time)", say):
        base = resolve(specs[0].model.name, specs[0].model.revision)
        say(f"  {base}")
    specs = _with_steps(specs, base)
    refuse_other_runs(study, specs, base)
    _write_recipe(study, recipe)
    for number, spec in enumerate(specs, start=1):
        run = study.run(spec.run_name)
        with _stage(f"[{number}/{len(specs)}] train {spec.run_name}", say):
            train_run(recipe, spec, run, start, say)
        with _stage(f"[{number}/{len(specs)}] consolidate {spec.run_name}", say):
            if complete_steps(run.checkpoints):
                consolidate_run(run, progress=_indented(say))
    for spec in specs:
        with _stage(f"score {spec.run_name}", say):
            score_run(study.run(spec.run_name), steps=[], base=spec is specs[0], progress=_indented(say))
    with _stage("analyse", say):
        analyse_study(study, registry.names("analysis"), say)
    with _stage("report", say):
        report = build_report(study, progress_lines(say))
    if start.lean:
        with _stage("clean", say):
            clean(study, keep_exports=True, checkpoints=True, say=_indented(say))
    say(f"report: {report}")
    return report


def _refuse_one_name(specs: list[Spec]) -> None:
    """Raise UserError where an override gives several arms one name: they would be one run's folder."""
    if len({spec.run_name for spec in specs}) < len(specs):
        raise UserError(
            f"arm={specs[0].arm} would give {len(specs)} runs one name; name arms in the recipe, or train "
            "one of them with launch/train.py --arm NAME"
        )


def _with_steps(specs: list[Spec], base: Path) -> list[Spec]:
    """Return the runs with their steps told, where epochs or tokens say them: it takes the rows to know."""
    if not any(spec.training.is_open for spec in specs):
        return specs
    rows = load_rows(specs[0], "train", load_tokenizer(base))  # all arms train on the same ones
    batches = [spec.training.global_batch for spec in specs]
    orders = [
        Mixture(rows.sizes, batch, spec.seed, spec.data.mixture)
        for spec, batch in zip(specs, batches, strict=True)
    ]
    return [with_steps(spec, order, rows.lengths) for spec, order in zip(specs, orders, strict=True)]


def refuse_other_runs(study: StudyLayout, specs: list[Spec], base: Path) -> None:
    """Raise UserError, before anything is written, if a run's folder holds another experiment."""
    held = [(spec, run) for spec in specs if (run := study.run(spec.run_name)).spec.exists()]
    if not held:
        return
    rows = load_rows(specs[0], "train", load_tokenizer(base))  # all arms train on the same ones
    for spec, run in held:
        identity = run_identity(spec, rows, base)
        if not run.identity.exists():
            raise UserError(f"{run.root}: holds a run without {run.identity.name}; {REMEDY}")
        changed = differences(files.read_json(run.identity), identity)
        # what is recorded may change while a run goes on, but not of one that is over
        if not changed and _is_finished(run):
            changed = differences(recorded(read_spec(run.spec)), recorded(spec))
        if changed:
            raise UserError(f"{run.root}: holds a run with other settings ({'; '.join(changed)}); {REMEDY}")


def _write_recipe(study: StudyLayout, recipe: Recipe) -> None:
    """Write the recipe unless the same is there: the report depends on the file."""
    tree = recipe.model_dump(mode="json")
    if not study.spec.exists() or files.read_json(study.spec) != tree:
        files.write_json(study.spec, tree)


def train_run(recipe: Recipe, spec: Spec, run: RunLayout, start: Launch, say: Say) -> None:
    """Train one run unless it is finished; how it is scored and analysed may have changed since."""
    if _is_finished(run):
        if read_spec(run.spec) != spec:
            files.write_json(run.spec, spec.as_dict())
        say("  finished before")
        return
    arguments = ["--config", str(start.config), "--experiment", str(start.recipe or DEFAULT_RECIPE)]
    arguments += ["--arm", spec.arm, "--seed", str(spec.seed), *recipe.overrides]
    launch_to_the_end(start.ranks, arguments, run, start.restarts, say)


def _is_finished(run: RunLayout) -> bool:
    return run.status.exists() and files.read_json(run.status)["state"] == "finished"


def analyse_study(
    study: StudyLayout,
    names: list[str],
    say: Say,
    source: Source = "auto",
    share: Share | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Run some analyses over every stored step of a study's runs; return the tables' paths.

    Several ranks, each given its ``share``, divide the work. Raises UserError where nothing is stored.
    """
    subjects = study_subjects(study, source)
    spec = read_spec(study.run(study.run_names()[0]).spec)
    params = study_params(study, spec, subjects[0].base)
    if workers is not None:
        params = dataclasses.replace(params, workers=workers)
    return run_analyses(names, subjects, study.tables, params, progress_lines(say), share)


def _indented(say: Say) -> Say:
    return lambda line: say(f"  {line}")


@contextlib.contextmanager
def _stage(title: str, say: Say) -> Iterator[None]:
    """Announce a stage, and say how long it took once it is done."""
    say(title)
    began = time.monotonic()
    yield
    say(f"  {time.monotonic() - began:.0f} s")
