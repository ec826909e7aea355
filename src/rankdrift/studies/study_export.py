"""A finished study as one archive: tables, scores, figures, report and settings, without weights."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.studies.cells import Cell

SUMS = "SHA256SUMS"
"""Checksums of all other files of the archive, as ``sha256sum --check`` reads them."""


def export(root: StudyLayout, cells: Sequence[Cell], archive: Path) -> list[Path]:
    """Pack a study; return the files in it, relative to its folder.

    Raises UserError where there is nothing to report on, or the archive's name is not one of a .tar.gz.
    """
    if not archive.name.endswith((".tar.gz", ".tgz")):
        raise UserError(f"--output {archive}: a .tar.gz is written; name one")
    studies = list(dict.fromkeys([root, *(cell.study for cell in cells)]))
    if not any(study.report.exists() for study in studies):
        raise UserError(f"{root.root}: has no report yet; 'rankdrift study run' makes one")
    found = sorted({path for study in studies for path in _files(study) if path.is_file()})
    top = Path(root.root.resolve().name)
    with files.replacing(archive) as temporary, tarfile.open(temporary, "w:gz") as tar:
        sums = []
        for path in found:
            name = path.relative_to(root.root)
            tar.add(path, str(top / name), recursive=False)
            sums.append(f"{files.digest_file(path)}  {name}\n")
        _add_text(tar, str(top / SUMS), "".join(sums))
    return [path.relative_to(root.root) for path in found]


def _files(study: StudyLayout) -> Iterator[Path]:
    """Yield what is worth keeping of one group, whether it is there or not."""
    report = study.report
    yield from (study.spec, study.cells, study.searched, study.trials, report, report.with_suffix(".md"))
    for folder in (study.figures, RunLayout(study.base).scores):
        yield from folder.glob("*")
    yield from study.tables.glob("*.*")
    for name in study.run_names():
        yield from _of_run(study.run(name))


def _of_run(run: RunLayout) -> Iterator[Path]:
    """Yield a run's settings, records and scores."""
    yield from (run.spec, run.status, run.environment, run.identity, run.facts, run.forecast, run.ds_config)
    yield from (run.cell, run.best, run.metrics, run.log)
    yield from run.probes.glob("*.parquet")
    yield from run.scores.glob("*")


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
