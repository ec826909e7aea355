"""Weights that are elsewhere, here for as long as something needs them: from a node, or from a storage."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rankdrift.analysis.parts import content
from rankdrift.analysis.sources.elsewhere import Held, held_elsewhere, require_here
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import IntegrityError
from rankdrift.layout import RunLayout
from rankdrift.progress import Say
from rankdrift.studies.executors import Executor
from rankdrift.studies.stored_cells import fetch

PIECE = 2**26
"""Bytes of weights that travel at once from a node."""


@contextlib.contextmanager
def brought(subjects: Iterable[Subject], executor: Executor | None, say: Say) -> Iterator[None]:
    """Have the weights of checkpoints here that are elsewhere, for as long as the block lasts.

    What a storage holds comes from there, what a node holds by an executor that reaches it. Raises UserError
    where none does, RankError where a node that holds some has gone, and IntegrityError where what has come
    is not what was measured there.
    """
    folders: list[Path] = []
    try:
        for subject in subjects:
            if held := held_elsewhere(subject):
                run = RunLayout(_root_of(subject))
                for name in (held.steps[subject.step], run.model.name):
                    if name in held.contents and not (run.root / name).exists():
                        if not held.is_storage and (executor is None or executor.is_here):
                            require_here([subject])
                        folders.append(run.root / name)
                        say(f"{folders[-1]} from {held.node}")
                        _bring(held, name, run, executor, say)
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _bring(held: Held, name: str, run: RunLayout, executor: Executor | None, say: Say) -> None:
    """Copy a folder of a run from where it is held; it appears whole."""
    target = run.root / name
    temporary = target.with_name(f".{target.name}.brought")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        if held.is_storage:
            fetch(held, name, temporary, say)
        else:
            assert executor is not None
            _copy(held, name, temporary, executor)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if content(target) != held.contents[name]:
        raise IntegrityError(
            f"{held.folder}/{name} on {held.node}: not what was measured there; carry the cell out again: "
            f"'rankdrift study retry STUDY {run.root.name}'"
        )


def _copy(held: Held, name: str, target: Path, executor: Executor) -> None:
    """Copy a folder of a run from the node that holds it."""
    for relative, size in executor.at(held.node, listed, str(Path(held.folder, name))):
        there = str(Path(held.folder, name, relative))
        bring_file(partial(executor.at, held.node), there, target / relative, size)


def bring_file(ask: Callable[..., Any], there: str, here: Path, size: int) -> None:
    """Copy a file from the node that is asked."""
    here.parent.mkdir(parents=True, exist_ok=True)
    with open(here, "wb") as file:
        while file.tell() < size:
            file.write(ask(piece, there, file.tell()))


def listed(folder: str) -> list[tuple[str, int]]:
    """Return the files below a folder with their sizes, bytes."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.stat().st_size) for path in found]


def piece(path: str, offset: int) -> bytes:
    """Return at most ``PIECE`` bytes of a file."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PIECE)


def _root_of(subject: Subject) -> Path:
    assert subject.run_dir is not None
    return subject.run_dir
