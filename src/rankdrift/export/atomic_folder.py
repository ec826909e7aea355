"""Folders that appear whole or not at all, made by one process at a time.

A folder is built beside its place under a temporary name and renamed, so whatever has the right name is
whole. One that it replaces steps aside first and comes back if the new one cannot take its place.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.zero_checkpoint.rotation import held

_SPARE = 64 * 2**20  # bytes beside the weights: headers, tokenizer, what a file system rounds up


@contextlib.contextmanager
def locked(checkpoint: Path) -> Iterator[None]:
    """Hold a checkpoint's folder against a second export of it; a killed process lets go of it.

    Raises UserError where another process holds it, or where the folder has gone.
    """
    with contextlib.ExitStack() as stack:
        try:
            free = stack.enter_context(held(checkpoint))
        except OSError as error:
            raise UserError(f"{checkpoint}: cannot be opened ({error}); use another step") from None
        if not free:
            raise UserError(f"{checkpoint}: another process is consolidating it; wait for it to end")
        yield


def restore(target: Path) -> None:
    """Bring back what stepped aside for a folder whose process was killed before it took its place."""
    old = _old(target)
    if old.exists() and not target.exists():
        old.rename(target)


@contextlib.contextmanager
def appearing(target: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` on success, and is gone on failure.

    The caller flushes what it writes. Raises UserError where the disk has not ``size`` bytes free; whatever
    fails, ``target`` stays as it was.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process: the lock says nobody else's
    temporary.mkdir(parents=True)
    try:
        _check_space(target.parent, size)
        yield temporary
        take_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def take_place(temporary: Path, target: Path) -> None:
    """Rename a folder that is whole to ``target``; one that was there comes back where that fails."""
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
        files.sync_folder(target.parent)
    except OSError:
        if not temporary.exists():  # it is in its place, but perhaps not on the disk
            shutil.rmtree(target)
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise UserError(
            f"{folder}: {free / 1e9:.2f} GB free where the export needs {(size + _SPARE) / 1e9:.2f} GB; "
            "free some space, or export in bf16"
        )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says while an export is made into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the export cannot be made ({error}); see that the folder is writable and has space"
        ) from error
