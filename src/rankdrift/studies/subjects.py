"""What a study gives to the analysis: its checkpoints as subjects, and the inputs drift is measured on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from rankdrift import records
from rankdrift.analysis.analyses import Params
from rankdrift.analysis.subjects import Subject, base_subject
from rankdrift.data.dataset import load_rows
from rankdrift.data.general_text import load_windows
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout, steps_in
from rankdrift.models.base import load_tokenizer, resolve
from rankdrift.spec import AnalysisSpec, DataSpec, Spec, read_spec


def study_subjects(study: StudyLayout) -> list[Subject]:
    """Return the base model and every exported checkpoint of every run of a study."""
    subjects: list[Subject] = []
    for name in study.run_names():
        spec = read_spec(study.run(name).spec)
        base = resolve(spec.model.name, spec.model.revision)
        if not subjects:
            subjects.append(base_subject(base, study.base))
        subjects += run_subjects(spec, study.run(name), base)
    return subjects


def run_subjects(spec: Spec, run: RunLayout, base: Path) -> list[Subject]:
    """Return every exported checkpoint of one run."""
    return [
        Subject(
            run=run.root.name,
            method=spec.method.name,
            rank=spec.method.rank if spec.method.name != "full" else 0,
            tasks=spec.data.tasks,
            seed=spec.seed,
            step=step,
            base=base,
            tuned=run.export(step),
            run_dir=run.root,
        )
        for step in steps_in(run.exports)
    ]


def folder_subjects(base: Path, tuned: list[Path]) -> list[Subject]:
    """Return model or adapter folders from anywhere as subjects, each under a name of its own."""
    return [base_subject(base), *map(partial(_folder_subject, base), tuned, _distinct_names(tuned))]


def _folder_subject(base: Path, folder: Path, name: str) -> Subject:
    adapter = folder / "adapter_config.json"
    return Subject(
        run=name,
        method="lora" if adapter.is_file() else "full",
        rank=int(records.read_json(adapter).get("r", 0)) if adapter.is_file() else 0,
        tasks=(),
        seed=0,
        step=0,
        base=base,
        tuned=folder,
    )


def _distinct_names(folders: list[Path]) -> list[str]:
    """Return the folders' names, with as many parents before them as it takes to tell them apart."""
    parts = [folder.resolve().parts[1:] for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same folder is given twice: {', '.join(map(str, folders))}")


def study_params(study: StudyLayout, spec: Spec, base: Path) -> Params:
    """Return the analyses' settings; drift is measured on the prompts of the validation rows."""
    rows = load_rows(spec, "validation", load_tokenizer(base)).rows[: spec.analysis.drift_rows]
    inputs = study.base / "drift_inputs.parquet"
    _write_inputs(inputs, [row.input_ids[: row.prompt_length].tolist() for row in rows])
    return _params(study, spec.analysis, inputs)


def folder_params(study: StudyLayout, base: Path, settings: AnalysisSpec) -> Params:
    """Return the analyses' settings for folders from anywhere; drift is measured on the built-in text."""
    text = DataSpec(general_text="builtin")
    windows = load_windows(text, load_tokenizer(base), settings.drift_rows)
    inputs = study.base / "drift_inputs.parquet"
    _write_inputs(inputs, [list(window.input_ids) for window in windows])
    return _params(study, settings, inputs)


def _params(study: StudyLayout, settings: AnalysisSpec, inputs: Path) -> Params:
    return Params(
        cache=study.base / "cache",
        top_k=settings.top_k,
        intruder_threshold=settings.intruder_threshold,
        drift_rows=settings.drift_rows,
        drift_inputs=inputs,
        workers=settings.workers,
    )


def _write_inputs(path: Path, rows: list[list[int]]) -> None:
    """Write the inputs unless the same are there: an unchanged file keeps what was computed from it."""
    table = pd.DataFrame({"input_ids": rows})
    if path.exists() and [list(ids) for ids in records.read_table(path)["input_ids"]] == rows:
        return
    records.write_parquet(path, table)
