"""What one analysis gives for one checkpoint or run, kept with a fingerprint of all that it depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.sources.elsewhere import content_elsewhere
from rankdrift.analysis.sources.subjects import IDENTITY, Subject
from rankdrift.layout import step_name
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Part:
    """One analysis of one subject, and the files that hold its rows."""

    analysis: Analysis
    subject: Subject
    folder: Path

    @cached_property
    def name(self) -> str:
        """``<run>-<step>``, or ``<run>`` for what is computed once for a run."""
        if self.analysis.per == "run":
            return self.subject.run
        return f"{self.subject.run}-{step_name(self.subject.step)}"

    @property
    def record(self) -> Path:
        """The JSON file that is written last and makes the part complete."""
        return self.folder / f"{self.name}.json"

    @property
    def portions(self) -> Path:
        """Where what is measured of an incomplete part is kept."""
        return self.folder / f"{self.name}.portions"

    def file(self, table: str) -> Path:
        """The rows of one table."""
        return self.folder / f"{self.name}.{table}.parquet"

    def dependencies(self, params: Params) -> dict[str, Any]:
        """Return what the rows depend on, as JSON types: if it has not changed, neither have they."""
        settings = settings_of(self.analysis, params, self.analysis.inputs(self.subject))
        return {"identity": self.subject.identity(), **settings}

    def stored(self) -> dict[str, Any]:
        """Return the record of a complete part."""
        record: dict[str, Any] = files.read_json(self.record)
        return record

    def is_current(self, wanted: Mapping[str, Any]) -> bool:
        """Return whether the part is complete and depends on nothing else than what is wanted."""
        if not self.record.exists():
            return False
        record = self.stored()
        return record["dependencies"] == wanted and all(map(Path.exists, map(self.file, record["tables"])))

    def store(self, frames: Tables, dependencies: Mapping[str, Any]) -> None:
        """Write the rows behind their identity columns, the record last."""
        self.record.unlink(missing_ok=True)
        for table, frame in frames.items():
            files.write_parquet(self.file(table), self._with_identity(table, frame))
        files.write_json(self.record, {"dependencies": dependencies, "tables": sorted(frames)})

    def _with_identity(self, table: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows behind their identity columns; a per-run frame states its own steps."""
        own = ["step"] if self.analysis.per == "run" else []
        declared = self.analysis.columns[table]
        odd = {*own, *declared} ^ set(frame.columns)
        assert not odd, f"analysis {self.analysis.name}, table {table}: {odd} not as declared"
        identity = {name: value for name, value in self.subject.identity().items() if name not in own}
        return frame.assign(**identity)[[*IDENTITY, *declared]]


@dataclass(frozen=True)
class StudyPart(Part):
    """One analysis of all subjects of a study together, and the files that hold the rows of its units."""

    subject: Any
    """All subjects, a tuple."""

    @cached_property
    def name(self) -> str:
        """``study``."""
        return "study"

    def dependencies(self, params: Params) -> dict[str, Any]:
        """Return what the rows depend on: every subject's identity and inputs."""
        inputs = {path for subject in self.subject for path in self.analysis.inputs(subject)}
        settings = settings_of(self.analysis, params, inputs)
        return {"identities": [subject.identity() for subject in self.subject], **settings}

    def _with_identity(self, table: str, frame: pd.DataFrame) -> pd.DataFrame:
        return frame


def settings_of(analysis: Analysis, params: Params, inputs: Iterable[Path]) -> dict[str, Any]:
    """Return an analysis's version, its settings and what is in its inputs, as JSON types.

    Neither where the inputs lie nor when they were written: a study that is copied elsewhere is up to date.
    """
    settings = params.of(analysis.settings).model_dump(mode="json") if analysis.settings else {}
    rows = getattr(params, analysis.rows) if analysis.rows else None
    paths = [*inputs, *([rows] if rows else [])]
    return {
        "version": analysis.version,
        "settings": settings,
        "inputs": sorted([path.name, found] for path in paths if (found := content(path))),
    }


def content(path: Path) -> str | None:
    """Return the identity of what is in an input; a checkpoint of ours states it, and is not read for it.

    Of what another machine holds that one has said so; None of what is nowhere.
    """
    if not path.exists():
        return content_elsewhere(path)
    manifest = path / MANIFEST_NAME
    if manifest.is_file():
        return files.digest_json(files.read_json(manifest)["files"])
    return files.content_digest(path)
