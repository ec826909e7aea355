"""Which models of a study are served, and what was found of them, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rankdrift import files
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.sources.observations import arm_of
from rankdrift.errors import UserError, require_known
from rankdrift.layout import StudyLayout, steps_in
from rankdrift.progress import Say, progress_lines
from rankdrift.spec import AnalysisSpec, read_spec
from rankdrift.studies.pipeline import analyse_study
from rankdrift.studies.study_checkpoints import folder_params, folder_subjects

SHOWN = [
    "arm",
    "way",
    "quantity",
    "batch",
    "prompt_tokens",
    "p50",
    "unit",
    "ratio",
    "ratio_low",
    "ratio_high",
]


def last_exports(study: StudyLayout, arms: Sequence[str] | None = None) -> dict[str, tuple[str, Path]]:
    """Return of each arm the run of its first seed and the export of its last step.

    Raises UserError for an arm that is not there, and where none has an export.
    """
    found: dict[str, tuple[int, str, Path]] = {}
    for name in study.run_names():
        run, seed = study.run(name), read_spec(study.run(name).spec).seed
        arm, steps = arm_of(name, seed), steps_in(run.exports)
        if steps and (arm not in found or seed < found[arm][0]):
            found[arm] = (seed, name, run.export(steps[-1]))
    for arm in arms or ():
        require_known("arm", arm, found)
    if not found:
        raise UserError(f"{study.root}: no run has an export; train first, then 'rankdrift consolidate'")
    return {arm: (name, export) for arm, (_, name, export) in found.items() if not arms or arm in arms}


def tabulate(study: StudyLayout, say: Say) -> None:
    """Bring a study's tables of deployment up to date."""
    analyse_study(study, ["deployment"], say)


def tabulate_folders(study: StudyLayout, base: Path, tuned: list[Path], say: Say) -> None:
    """Make the tables of models from anywhere."""
    params = folder_params(study, None, AnalysisSpec())
    run_analyses(["deployment"], folder_subjects(base, tuned), study.tables, params, progress_lines(say))


def lines_of(study: StudyLayout) -> Iterator[str]:
    """Yield what was found: times of requests, and their ratios to the merged model."""
    rows = files.read_table(study.table("deployment_benchmark_summary"))
    rows = rows[rows["quantity"].isin(["first_token", "further_token", "classification"])]
    yield rows[SHOWN].to_string(index=False, float_format=lambda value: f"{value:.4g}")
    yield f"table: {study.table('deployment_benchmark_summary')}"
