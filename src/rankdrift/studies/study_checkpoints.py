"""What a study gives to the analysis: its checkpoints as subjects, and the inputs drift is measured on."""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Params
from rankdrift.analysis.measures.checkpoint_gradients import Settings as Gradients
from rankdrift.analysis.measures.drift import Settings as Drift
from rankdrift.analysis.sources.elsewhere import Held
from rankdrift.analysis.sources.folders import config_folder, is_adapter
from rankdrift.analysis.sources.observations import BASE
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.analysis.sources.tensors import ADAPTER_CONFIG
from rankdrift.data.dataset import load_rows
from rankdrift.data.general_text import load_windows
from rankdrift.data.tokens import Row
from rankdrift.errors import UserError
from rankdrift.export.consolidate import PROVENANCE_NAME
from rankdrift.layout import RunLayout, StudyLayout, step_of, steps_in
from rankdrift.models.base import load_tokenizer, resolve
from rankdrift.spec import AnalysisSpec, DataSpec, Spec, analysis_settings, read_spec
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps
from rankdrift.zero_checkpoint.trainer_folder import trainer_folder

Source = Literal["auto", "exports", "checkpoints"]
"""Where the weights of a step are read from."""
IGNORED = -100
"""Label of a token that carries no loss, as transformers has it."""
TEXT_TOKENS = 64
"""Tokens of each window of general text on which gradients are taken."""
_NOTHING: dict[Source, str] = {
    "auto": "no run has a complete checkpoint or an export; train first",
    "exports": "no run has an export; run 'rankdrift consolidate' on them, or use --source checkpoints",
    "checkpoints": "no run has a complete checkpoint; train first, or use --source exports",
}


def study_subjects(study: StudyLayout, source: Source = "auto") -> list[Subject]:
    """Return the base model and every stored step of every run of a study.

    Raises UserError if no run has one.
    """
    subjects: list[Subject] = []
    for name in study.run_names():
        spec = read_spec(study.run(name).spec)
        base = resolve(spec.model.name, spec.model.revision)
        if not subjects:
            subjects.append(base_subject(base, study.base))
        subjects += run_subjects(spec, study.run(name), base, source)
    if not any(subject.tuned for subject in subjects):
        raise UserError(f"{study.runs}: {_NOTHING[source]}")
    return subjects


def run_subjects(spec: Spec, run: RunLayout, base: Path, source: Source = "auto") -> list[Subject]:
    """Return every stored step of one run."""
    return [
        Subject(
            run=run.root.name,
            method=spec.method.name,
            rank=spec.method.adapter_rank,
            tasks=spec.data.tasks,
            seed=spec.seed,
            step=step,
            base=base,
            tuned=folder,
            run_dir=run.root,
        )
        for step, folder in stored_steps(run, source).items()
    ]


def stored_steps(run: RunLayout, source: Source = "auto") -> dict[int, Path]:
    """Return the folder that holds each step of a run, by step: an export or a complete checkpoint.

    Of a step that is there as both, "auto" takes the export, unless its weights were rounded; and of steps
    that are not here, where another machine holds them.
    """
    exports = {step: run.export(step) for step in steps_in(run.exports)}
    if source == "exports":
        return exports
    checkpoints = {step: run.checkpoint(step) for step in complete_steps(run.checkpoints)}
    if source == "checkpoints":
        return checkpoints
    held = Held.of(run)
    elsewhere = {step: run.root / path for step, path in held.steps.items()} if held else {}
    checkpoints = {
        step: folder
        for step, folder in checkpoints.items()
        if step not in elsewhere or Manifest.stated(folder).here is None  # a part is not what was measured
    }
    exact = {step: folder for step, folder in exports.items() if _is_exact(folder)}
    return dict(sorted({**elsewhere, **exports, **checkpoints, **exact}.items()))


def _is_exact(export: Path) -> bool:
    provenance = export / PROVENANCE_NAME
    return provenance.is_file() and files.read_json(provenance).get("dtype") == "fp32"


def folder_subjects(base: Path, tuned: list[Path], initial: Path | None = None) -> list[Subject]:
    """Return folders of models, adapters or checkpoints as subjects, each under a name of its own.

    ``initial`` is the adapter before training of all of them, where their method changes the base weights.
    """
    names = _distinct_names(tuned)
    return [base_subject(base), *map(partial(_folder_subject, base, initial), tuned, names)]


def _folder_subject(base: Path, initial: Path | None, folder: Path, name: str) -> Subject:
    adapter = is_adapter(folder)
    return Subject(
        run=name,
        method="lora" if adapter else "full",
        rank=_adapter_rank(config_folder(folder) / ADAPTER_CONFIG) if adapter else 0,
        tasks=(),
        seed=0,
        step=_step_of(folder),
        base=base,
        tuned=folder,
        initial=initial,
    )


def _step_of(folder: Path) -> int:
    """Return the step in a folder's name: ours (step-000500), or a checkpoint of others; 0 where none is."""
    others = trainer_folder(folder)
    return others.step if others else step_of(folder.name) or 0


def _adapter_rank(path: Path) -> int:
    """Return the rank in an adapter's settings, 0 where there is none; raise UserError if it is no number."""
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object, but {type(config).__name__}; restore the adapter's own")
    rank = config.get("r", 0)
    if type(rank) is not int or rank < 0:
        raise UserError(f"{path}: r={rank!r} is no rank; restore the number the adapter was trained with")
    return rank


def _distinct_names(folders: list[Path]) -> list[str]:
    """Return the folders' names, with as many parents before them as it takes to tell them apart.

    None is ``base``, the name of the base model's rows. Raises UserError where no number of parents will do.
    """
    parts = [folder.resolve().parts[1:] for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names) and BASE not in names:
            return names
    raise UserError(
        f"{', '.join(map(str, folders))}: a folder is given twice, or no name tells it from the others and "
        f"from {BASE!r}; give each once, or rename it"
    )


def study_params(study: StudyLayout, spec: Spec, base: Path) -> Params:
    """Return what a study's analyses are given; of drift, validation prompts, as many of each task."""
    params = _params(study, spec.analysis)
    tables = load_rows(spec, "validation", load_tokenizer(base)).tables
    drifting = [table[: params.of(Drift).rows] for table in tables]
    in_turn = [row for rows in zip_longest(*drifting) for row in rows if row is not None]
    prompts = [row.input_ids[: row.prompt_length].tolist() for row in in_turn[: params.of(Drift).rows]]
    probed = [row for table in tables for row in table[: params.of(Gradients).rows]]
    return _with_rows(params, study, prompts, [_with_labels(row, spec.model.head) for row in probed])


def _with_labels(row: Row, head: str) -> dict[str, Any]:
    """Return a row as gradients are taken on it: a class, or its tokens where they carry loss."""
    ids = row.input_ids.tolist()
    if head == "classifier":
        return {"task": row.task, "input_ids": ids[: row.prompt_length], "labels": [row.label]}
    labels = np.where(row.carries_loss, row.input_ids, IGNORED)
    return {"task": row.task, "input_ids": ids, "labels": labels.tolist()}


def folder_params(study: StudyLayout, base: Path | None, settings: AnalysisSpec) -> Params:
    """Return what analyses of folders from anywhere are given; the rows are of the built-in text.

    Without a base, whose tokenizer is needed, there are no rows.
    """
    params = _params(study, settings)
    if base is None:
        return params
    text, drift_rows = DataSpec(general_text="builtin"), params.of(Drift).rows
    windows = load_windows(text, load_tokenizer(base), drift_rows)
    beginnings = [list(window.input_ids[:TEXT_TOKENS]) for window in windows[: params.of(Gradients).rows]]
    rows = [{"task": "general_text", "input_ids": ids, "labels": [IGNORED, *ids[1:]]} for ids in beginnings]
    return _with_rows(params, study, [list(window.input_ids) for window in windows], rows)


def _params(study: StudyLayout, analysis: AnalysisSpec) -> Params:
    return Params(study.base / "cache", analysis.workers, settings=analysis_settings(analysis))


def _with_rows(
    params: Params, study: StudyLayout, inputs: list[list[int]], rows: list[dict[str, Any]]
) -> Params:
    """Write the rows that go through the models."""
    drift = _written(study.base / "drift_inputs.parquet", pd.DataFrame({"input_ids": inputs}))
    path = study.base / "gradient_inputs.parquet"
    gradients = _written(path, pd.DataFrame(rows)) if rows else None
    return dataclasses.replace(params, drift_inputs=drift, gradient_inputs=gradients)


def _written(path: Path, table: pd.DataFrame) -> Path:
    """Write rows unless the same are there: an unchanged file keeps what was computed from it."""
    with files.held(path.with_suffix(".lock")):  # ranks come at the same time
        if not path.exists() or _plain(files.read_table(path)) != _plain(table):
            files.write_parquet(path, table)
    return path


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain values: a list comes back from a file as an array."""
    plain = table.map(lambda value: list(value) if isinstance(value, list | np.ndarray) else value)
    return [dict(zip(plain.columns, row, strict=True)) for row in plain.itertuples(index=False)]
