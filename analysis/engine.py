"""Runs analyses over checkpoints: computes what is new, keeps every part, joins the parts into tables.

A part is what one analysis gives for one checkpoint (or run). It is stored below ``tables/.parts`` with the
fingerprint of its inputs and settings, so an analysis that was killed continues where it stopped, a new
checkpoint costs only itself, and an unchanged study costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import records, registry
from rankdrift.analysis.analyses import Analysis, Params
from rankdrift.analysis.subjects import IDENTITY, Subject
from rankdrift.errors import UserError
from rankdrift.layout import step_name

PARTS = ".parts"

Progress = Callable[[str, int, int], None]
"""(analysis, parts that are done, parts in all) -> None."""


def run_analyses(
    names: Sequence[str], subjects: Sequence[Subject], tables: Path, params: Params, progress: Progress
) -> list[Path]:
    """Bring the tables of the named analyses up to date; return their Parquet files.

    Rows are in the order of ``subjects``, identity columns first. Raises UserError for an unknown analysis,
    and for whatever an analysis cannot read.
    """
    analyses = [registry.load("analysis", name) for name in names]
    return [
        path for analysis in analyses for path in _run_analysis(analysis, subjects, tables, params, progress)
    ]


@dataclass(frozen=True)
class Part:
    """One analysis of one subject: what it depends on, and the files that hold its rows."""

    analysis: Analysis
    subject: Subject
    folder: Path

    @property
    def name(self) -> str:
        """``<run>-<step>``, or ``<run>`` for what is computed once for a run."""
        if self.analysis.per == "run":
            return self.subject.run
        return f"{self.subject.run}-{step_name(self.subject.step)}"

    @property
    def record(self) -> Path:
        """The JSON file that is written last and makes the part complete."""
        return self.folder / f"{self.name}.json"

    def file(self, table: str) -> Path:
        """The rows of one table."""
        return self.folder / f"{self.name}.{table}.parquet"

    def dependencies(self, params: Params) -> dict[str, Any]:
        """Return what the rows depend on, as JSON types: if it has not changed, neither have they."""
        settings = {name: getattr(params, name) for name in self.analysis.parameters}
        inputs = self.analysis.inputs(self.subject)
        inputs += [value for value in settings.values() if isinstance(value, Path)]
        return {
            "version": self.analysis.version,
            "identity": self.subject.identity(),
            "params": {
                name: str(value) if isinstance(value, Path) else value for name, value in settings.items()
            },
            "inputs": {str(path): records.fingerprint(path) for path in inputs if path.exists()},
        }

    def ensure(self, params: Params) -> dict[str, Any]:
        """Compute the part unless it is up to date; return its record."""
        wanted = self.dependencies(params)
        if self.record.exists():
            record: dict[str, Any] = records.read_json(self.record)
            if record["dependencies"] == wanted and all(
                self.file(table).exists() for table in record["tables"]
            ):
                return record
            self.record.unlink()
        frames = self.analysis.compute(self.subject, params)
        for table, frame in frames.items():
            records.write_parquet(self.file(table), self._with_identity(table, frame))
        record = {"dependencies": wanted, "tables": sorted(frames)}
        records.write_json(self.record, record)
        return record

    def _with_identity(self, table: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows behind their identity columns; a per-run frame states its own steps."""
        own = ["step"] if self.analysis.per == "run" else []
        declared = self.analysis.columns[table]
        missing = {*own, *declared} ^ set(frame.columns)
        assert not missing, f"analysis {self.analysis.name}, table {table}: {missing} not as declared"
        identity = {name: value for name, value in self.subject.identity().items() if name not in own}
        return frame.assign(**identity)[[*IDENTITY, *declared]]


def _run_analysis(
    analysis: Analysis, subjects: Sequence[Subject], tables: Path, params: Params, progress: Progress
) -> list[Path]:
    parts = _parts(analysis, subjects, tables / PARTS / analysis.name)
    found = []
    progress(analysis.name, 0, len(parts))
    for number, part in enumerate(parts, start=1):
        found.append((part, part.ensure(params)))
        progress(analysis.name, number, len(parts))
    return [_join(analysis, table, found, tables) for table in analysis.tables]


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
    stored = [records.read_table(part.file(table)) for part, record in parts if table in record["tables"]]
    empty = pd.DataFrame(columns=[*IDENTITY, *analysis.columns[table]])
    meta = {
        "analysis": analysis.name,
        "columns": dict(analysis.columns[table]),
        "parts": dependencies,
        "environment": records.environment(),
    }
    rows = pd.concat([frame for frame in stored if len(frame)] or [empty], ignore_index=True)
    records.write_table(path, rows, meta, csv=table not in analysis.parquet_only)
    return path


def _is_current(path: Path, parts: Mapping[str, Any]) -> bool:
    meta = path.with_suffix(".meta.json")
    return path.exists() and meta.exists() and records.read_json(meta).get("parts") == parts
