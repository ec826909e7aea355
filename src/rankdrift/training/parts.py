"""Checkpoints whose files lie on several machines: which steps are whole, and how a rank gets all files.

A machine keeps the files its ranks wrote. A step counts if every file of it is on some machine that takes
part. To go on from it, ranks need files of others (at stages 1 and 2 the module's own, after a change of the
ranks any), so what a place lacks comes through the process group, and goes again once it has been read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from torch import Tensor

from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.training.collectives import from_rank, gather, rank, require_none
from rankdrift.training.places import Places
from rankdrift.zero_checkpoint.checksums import StoredFile, stored_file
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME, Manifest, complete_steps, newest

logger = logging.getLogger(__name__)

CHUNK = 16 * 2**20
"""Bytes that travel at once."""


@dataclass(frozen=True)
class Held:
    """A step that all places together have."""

    content: str
    """Digest of what it is (``Manifest.content``): places may have other files under its name."""
    holders: Mapping[str, int]
    """By file: the rank that reads it out."""


def whole_steps(run: RunLayout, places: Places) -> dict[int, Held | None]:
    """Return the steps of which every file is at hand, and who has it; None where one folder has all.

    Every rank must call it.
    """
    if not places.apart:
        return dict.fromkeys(complete_steps(run.checkpoints))
    own = {step: _kept(run, step) for step in complete_steps(run.checkpoints)} if places.leads else {}
    every = gather(own)
    found: dict[int, Held | None] = {}
    for step in sorted({step for kept in every for step in kept}):
        if held := _together(step, every):
            found[step] = held
    return found


def require_some(run: RunLayout, places: Places, whole: Mapping[int, Held | None]) -> None:
    """Raise UserError where there are checkpoints, but of none of them all files; say of what is newer.

    Every rank must call it.
    """
    if not places.apart:
        return
    lacking = gather(_lacking(run, max(whole, default=0)) if places.leads else None)
    if not (said := [line for line in lacking if line]):
        return
    if whole:
        logger.warning("%s; going on from step %d", said[0], max(whole))
        return
    raise UserError(
        f"{said[0]}, which do not take part or have lost them, and no other step is whole; start there too, "
        "bring the files (rankdrift gather), or train into another folder (study=NAME or output=FOLDER)"
    )


def has(folder: Path, held: Held | None) -> bool:
    """Whether a folder has a part, or all, of what is held."""
    if held is None:
        return True
    return (folder / MANIFEST_NAME).exists() and Manifest.read_part(folder).content == held.content


@contextlib.contextmanager
def at_hand(folder: Path, held: Held | None, places: Places) -> Iterator[Path]:
    """Yield a folder with all files of a checkpoint, while it is read; every rank must call it.

    Raises UserError where a disk cannot take what is missing.
    """
    if held is None:
        yield folder
        return
    brought = folder.with_name(f".{folder.name}.brought.tmp")
    own = Manifest.read_part(folder) if has(folder, held) else None
    manifest = next(found for found in gather(own and own.whole()) if found)
    mine = set(own.names_here) if own else set()
    try:
        with _failures(f"{folder}: what other machines hold of it cannot be brought"):
            places.on_leaders(lambda: _link(folder, brought, mine))
            bring(folder, brought, manifest.files, held.holders, places, mine)
            places.on_leaders(lambda: _state(manifest, brought))
        yield brought
        gather(None)  # all have read
    finally:
        if places.leads:
            shutil.rmtree(brought, ignore_errors=True)


def bring_folder(folder: Path, places: Places) -> None:
    """Give places that lack a small folder the files that rank 0's place has in it; all must call it."""
    if not places.apart:
        return
    there = folder.is_dir()
    found = {file.name: stored_file(file) for file in folder.iterdir()} if there and rank() == 0 else {}
    files, have = gather(found)[0], there or not places.leads
    scratch = folder.with_name(f".{folder.name}.brought.tmp")
    with _failures(f"{folder}: cannot be brought"):
        places.on_leaders(lambda: None if have else _link(folder, scratch, set()))
        bring(folder, scratch, files, dict.fromkeys(files, 0), places, set(files) if there else set())
        places.on_leaders(lambda: None if have or not files else _rename(scratch, folder))


def bring(
    source: Path,
    target: Path,
    files: Mapping[str, StoredFile],
    holders: Mapping[str, int],
    places: Places,
    have: set[str],
) -> None:
    """Write files that this rank's place lacks into a folder, out of another place's; all must call it.

    Raises OSError on every rank where one of them cannot be read, written, or is not as stated.
    """
    wanted = [name for name in sorted(files) if any(gather(name not in have))]
    failure = None
    for name in wanted:
        out = target / name if places.leads and name not in have else None
        failure = _pass_on(source / name, out, files[name], holders[name]) or failure
    require_none(failure)


def _pass_on(path: Path, out: Path | None, stored: StoredFile, holder: int) -> str | None:
    """Send a file from the rank that holds it to those that write it; return what failed here.

    A failure is kept, not raised: the others are waiting for the rest.
    """
    sent = _chunks(path, stored.size) if rank() == holder else None
    received = _Received(out) if out else None
    for start in range(0, stored.size, CHUNK):
        count = min(CHUNK, stored.size - start)
        chunk = from_rank(holder, next(sent) if sent else torch.zeros(count, dtype=torch.uint8))
        if received:
            received.add(chunk)
    return received.end(stored) if received else None


def _chunks(path: Path, size: int) -> Iterator[Tensor]:
    """Yield a file's bytes; zeros where it cannot be read, which nobody takes for it."""
    with contextlib.ExitStack() as stack:
        try:
            handle: IO[bytes] = stack.enter_context(open(path, "rb"))
        except OSError:
            handle = io.BytesIO()
        for start in range(0, size, CHUNK):
            count = min(CHUNK, size - start)
            yield torch.frombuffer(bytearray(handle.read(count).ljust(count, b"\0")), dtype=torch.uint8)


class _Received:
    """A file that is written as it comes; what fails is kept."""

    def __init__(self, path: Path) -> None:
        self.path, self.failure, self.size = path, "", 0
        self._sum = xxhash.xxh3_128()

    def add(self, chunk: Tensor) -> None:
        """Append bytes."""
        data = chunk.numpy().data
        self._sum.update(data)
        self.size += len(data)
        try:
            if not self.failure:
                with open(self.path, "ab") as handle:
                    handle.write(data)
        except OSError as error:
            self.failure = f"{self.path}: {error.strerror}"

    def end(self, stored: StoredFile) -> str | None:
        """Return what failed, or that it is not what was sent."""
        if not self.failure and StoredFile(self.size, self._sum.hexdigest()) != stored:
            self.failure = f"{self.path}: did not arrive as it was written"
        return f"{socket.gethostname()}: {self.failure}" if self.failure else None


def _kept(run: RunLayout, step: int) -> tuple[str, tuple[str, ...], int, int]:
    """Return what a place has of a step: what it is, which files, of how many; and who asks."""
    manifest = Manifest.read_part(run.checkpoint(step))
    return manifest.content, manifest.names_here, len(manifest.files), rank()


def _together(step: int, every: Sequence[Mapping[int, Any]]) -> Held | None:
    """Return who holds what of a step, if its files are all there, of one and the same checkpoint."""
    holders: dict[str, dict[str, int]] = {}
    for content, names, count, holder in (kept[step] for kept in every if step in kept):
        known = holders.setdefault(content, {})
        known |= {name: holder for name in names if name not in known}
        if len(known) == count:
            return Held(content, known)
    return None


def _lacking(run: RunLayout, after: int) -> str | None:
    """Say what this place knows of a step behind ``after``, of which others have not all files."""
    step = newest(run.checkpoints)
    if step is None or step <= after:
        return None
    manifest = Manifest.read_part(run.checkpoint(step))
    hosts = sorted({manifest.parts[node].host for node in manifest.elsewhere().values()})
    return f"{run.checkpoint(step)}: its other files were written on {', '.join(hosts)}"


def _link(folder: Path, target: Path, names: set[str]) -> None:
    """Make a folder whose entries are the files of another one."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names:
        (target / name).symlink_to((folder / name).absolute())


def _state(manifest: Manifest, folder: Path) -> None:
    manifest.keep(folder)


def _rename(scratch: Path, folder: Path) -> None:
    scratch.rename(folder)


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} ({error}); free some of that disk, or use another host") from None
