"""Runs analyses over checkpoints: computes what is new, keeps every part, joins the parts into tables.

A part is what one analysis gives for one checkpoint (or run). It is stored below ``tables/.parts`` with the
fingerprint of its inputs and settings, so an analysis that was killed continues where it stopped, a new
checkpoint costs only itself, and an unchanged study costs nothing. An analysis that works matrix by matrix
shares all matrices of all checkpoints over processes (:mod:`rankdrift.analysis.worklist`). Those of a whole
study come last and read the others' tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import files, registry
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.parts import Part, StudyPart, settings_of
from rankdrift.analysis.sources.elsewhere import Weights, none_elsewhere
from rankdrift.analysis.sources.subjects import IDENTITY, Subject
from rankdrift.analysis.worklist import bring_up_to_date
from rankdrift.errors import UserError
from rankdrift.progress import Progress

PARTS = ".parts"


def run_analyses(
    names: Sequence[str],
    subjects: Sequence[Subject],
    tables: Path,
    params: Params,
    progress: Progress,
    weights: Weights = none_elsewhere,
) -> list[Path]:
    """Bring the tables of the named analyses up to date; return their Parquet files.

    Rows are in the order of ``subjects``, identity columns first. ``weights`` has here what another machine
    or a storage holds, for what needs it.

    Raises
    ------
    UserError
        For an unknown analysis, and for whatever an analysis cannot read.

    """
    analyses = [registry.load("analysis", name) for name in names]
    written = []
    for analysis in sorted(analyses, key=lambda analysis: analysis.per == "study"):
        if analysis.per == "study":
            written += _run_on_study(analysis, subjects, tables, params, progress, weights)
            continue
        parts = _parts(analysis, subjects, tables / PARTS / analysis.name)
        paths = [tables / f"{table}.parquet" for table in analysis.tables]
        wanted = {part.name: part.dependencies(params) for part in parts}
        if all(_is_current(path, wanted) for path in paths):  # the parts may have been cleaned away
            written += paths
            continue
        bring_up_to_date(analysis, parts, params, progress, weights)
        found = [(part, part.stored()) for part in parts]
        written += [_join(analysis, table, found, tables) for table in analysis.tables]
    return written


def measure_checkpoints(
    names: Sequence[str], subjects: Sequence[Subject], tables: Path, params: Params, progress: Progress
) -> None:
    """Bring up to date what the named analyses have of some checkpoints, for tables that are joined later."""
    for analysis in (registry.load("analysis", name) for name in names):
        if analysis.per == "checkpoint":
            parts = _parts(analysis, subjects, tables / PARTS / analysis.name)
            bring_up_to_date(analysis, parts, params, progress)


def _parts(analysis: Analysis, subjects: Sequence[Subject], folder: Path) -> list[Part]:
    """Return the parts to have, in order; of a run with several checkpoints, one per-run part."""
    parts: dict[str, Part] = {}
    for subject in subjects:
        part = Part(analysis, subject, folder)
        if analysis.per == "run":
            if subject.run_dir is not None:
                parts.setdefault(part.name, part)
        elif part.name in parts:
            first = parts[part.name].subject.tuned
            raise UserError(f"{first} and {subject.tuned} are both '{part.name}'; give them different names")
        else:
            parts[part.name] = part
    return list(parts.values())


def _join(
    analysis: Analysis, table: str, parts: Sequence[tuple[Part, Mapping[str, Any]]], tables: Path
) -> Path:
    """Write a table from its parts unless it is up to date; return its Parquet file."""
    path = tables / f"{table}.parquet"
    dependencies = {part.name: record["dependencies"] for part, record in parts}
    if _is_current(path, dependencies):
        return path
    stored = [part.file(table) for part, record in parts if table in record["tables"]]
    meta, is_csv = _meta(analysis, path, dependencies), table not in analysis.parquet_only
    if not files.join_tables(path, stored, meta, is_csv):
        empty = pd.DataFrame(columns=[*IDENTITY, *analysis.columns[table]])
        files.write_table(path, empty, meta, is_csv)
    return path


def _run_on_study(
    analysis: Analysis,
    subjects: Sequence[Subject],
    tables: Path,
    params: Params,
    progress: Progress,
    weights: Weights,
) -> list[Path]:
    """Compute a study's tables unless checkpoints, scores and the tables it reads are the same as before."""
    part = StudyPart(analysis, tuple(subjects), tables / PARTS / analysis.name)
    read = [tables / f"{table}.parquet" for table in analysis.reads]
    read += [tables.parent / name for name in analysis.study_files]
    inputs = {path for subject in subjects for path in analysis.inputs(subject)} | set(read)
    dependencies = {"study": settings_of(analysis, params, sorted(inputs))}
    paths = [tables / f"{table}.parquet" for table in analysis.tables]
    current = all(_is_current(path, dependencies) for path in paths)  # its parts may have been cleaned away
    if analysis.split and not current:
        with weights(subjects):
            bring_up_to_date(analysis, [part], params, progress)
    if not current:
        progress(analysis.name, 0, 1)
        frames = _study_tables(part, params, tables)
        for table, path in zip(analysis.tables, paths, strict=True):
            declared = list(analysis.columns[table])
            rows = frames.get(table, pd.DataFrame(columns=declared))
            odd = set(declared) ^ set(rows.columns)
            assert not odd, f"analysis {analysis.name}, table {table}: {odd} not as declared"
            _write(analysis, path, rows[declared], dependencies)
    progress(analysis.name, 1, 1)
    return paths


def _study_tables(part: StudyPart, params: Params, tables: Path) -> Tables:
    analysis, subjects = part.analysis, part.subject
    if analysis.compute_all:
        return analysis.compute_all(subjects, params, tables)
    assert analysis.finish is not None
    return analysis.finish(
        subjects, {name: files.read_table(part.file(name)) for name in part.stored()["tables"]}
    )


def _write(analysis: Analysis, path: Path, rows: pd.DataFrame, dependencies: Mapping[str, Any]) -> None:
    meta = _meta(analysis, path, dependencies)
    files.write_table(path, rows, meta, csv=path.stem not in analysis.parquet_only)


def _meta(analysis: Analysis, path: Path, dependencies: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "analysis": analysis.name,
        "columns": dict(analysis.columns[path.stem]),
        "parts": dependencies,
        "environment": files.environment(),
    }


def _is_current(path: Path, parts: Mapping[str, Any]) -> bool:
    meta = path.with_suffix(".meta.json")
    return path.exists() and meta.exists() and files.read_json(meta).get("parts") == parts
