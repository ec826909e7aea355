"""What travels of a cell: all but weights as one archive, and what is in the weights that stay behind."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rankdrift import files
from rankdrift.analysis.contract import checkpoint_inputs
from rankdrift.analysis.engine import PARTS
from rankdrift.analysis.parts import content
from rankdrift.analysis.sources.elsewhere import Held
from rankdrift.errors import IntegrityError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import resolve
from rankdrift.studies.cells import Cell
from rankdrift.studies.study_checkpoints import run_subjects

STAYS = frozenset({"checkpoints", "exports", "merged", "model", "traces", "held.json"})
"""Of a run's folder: weights, and what is as large."""


def held_of(cell: Cell, node: str, folder: str) -> Held:
    """Return what there is of a cell's weights, as held by a node or a storage in a folder there."""
    base = resolve(cell.spec.model.name, cell.spec.model.revision)
    root = Path(os.path.abspath(cell.run.root))
    steps, contents = {}, {}
    for subject in run_subjects(cell.spec, cell.run, base):
        for path in checkpoint_inputs(subject):
            absolute = Path(os.path.abspath(path))
            if absolute.is_relative_to(root) and (found := content(path)):
                contents[str(absolute.relative_to(root))] = found
        assert subject.tuned is not None
        steps[subject.step] = str(Path(os.path.abspath(subject.tuned)).relative_to(root))
    return Held(node, folder, steps, contents)


def packed(cell: Cell, with_base: bool, root: StudyLayout, held: Held) -> bytes:
    """Return what travels of a cell, as a tar of files relative to a study's folder.

    ``held`` says who holds its weights; of the base model goes what was measured with the cell.
    """
    buffer = io.BytesIO()
    top = Path(os.path.abspath(root.root))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in _travels(cell, with_base):
            tar.add(path, str(Path(os.path.abspath(path)).relative_to(top)), recursive=False)
        told = json.dumps(dataclasses.asdict(held)).encode()
        member = tarfile.TarInfo(str(Path(os.path.abspath(cell.run.held)).relative_to(top)))
        member.size = len(told)
        tar.addfile(member, io.BytesIO(told))
    return buffer.getvalue()


def unpack(archive: bytes, root: StudyLayout) -> None:
    """Unpack what ``packed`` gives into a study's folder; last the record that says the cell is done."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        record = RunLayout(root.root).cell.name
        members = sorted(tar.getmembers(), key=lambda member: Path(member.name).name == record)
        for member in members:
            _write(root.root / member.name, tar.extractfile(member), root.root)


def _write(path: Path, content: IO[bytes] | None, root: Path) -> None:
    """Write a file below a folder; raise IntegrityError for what is none, or would lie outside of it."""
    # by hand: the filters of tarfile are younger than Python 3.11's first releases
    if content is None or not path.resolve().is_relative_to(root.resolve()):
        raise IntegrityError(
            f"{path}: not a file of a cell in the archive that came; carry the cell out again"
        )
    with files.replacing(path) as temporary:
        temporary.write_bytes(content.read())


def _travels(cell: Cell, with_base: bool) -> Iterator[Path]:
    """Yield the files of a cell that travel; of a name that begins with a dot none: locks, and unfinished."""
    run, study = cell.run, cell.study
    for path in sorted(run.root.rglob("*")):
        parts = path.relative_to(run.root).parts
        if path.is_file() and not STAYS & set(parts) and not path.name.startswith("."):
            yield path
    names = [f"{cell.spec.run_name}-step-", f"{cell.spec.run_name}."]
    if with_base:
        yield from (path for path in sorted(RunLayout(study.base).scores.glob("*")) if path.is_file())
        names.append("base-step-")
    for path in sorted((study.tables / PARTS).glob("*/*.*")):
        if path.is_file() and path.name.startswith(tuple(names)):
            yield path
