"""What the checks of a stored folder have in common: a name, a result in a few words, and ways to fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankdrift.errors import IntegrityError
from rankdrift.zero_checkpoint.checksums import StoredFile, stored_file

CARD = "README.md"
"""What a hub shows of a folder; it is put beside what is listed, and may change."""

Progress = Callable[[int, int], None]  # takes the bytes read so far, and those there are


class LeftOutError(Exception):
    """A check that cannot be made here, which says nothing about what is stored; the text is the reason."""


@dataclass(frozen=True)
class Check:
    """One check of one folder."""

    name: str
    make: Callable[[Progress], str]
    """Returns what was found, in a few words; raises IntegrityError, UserError or LeftOutError."""


def check_listing(folder: Path, listed: Mapping[str, int], manifest: str) -> str:
    """Sum up a folder; raise IntegrityError unless it holds the files of its manifest and no other.

    But for a card.
    """
    present = set(_entries(folder)) - {manifest, *({CARD} - listed.keys())}
    if missing := sorted(listed.keys() - present):
        raise IntegrityError(f"{folder / missing[0]}: missing ({len(missing)} in all); copy the folder again")
    if extra := sorted(present - listed.keys()):
        raise IntegrityError(
            f"{folder / extra[0]}: its {manifest} lists no such file ({len(extra)} in all); move it away"
        )
    for name, size in listed.items():
        if not (folder / name).is_file():
            raise IntegrityError(f"{folder / name}: not a file; copy the folder again")
        if (found := (folder / name).stat().st_size) != size:
            raise IntegrityError(
                f"{folder / name}: {found} bytes where {size} were written; copy the folder again"
            )
    return f"{len(listed)} files, {sum(listed.values()) / 1e6:.1f} MB"


def check_contents(
    folder: Path, listed: Mapping[str, StoredFile], progress: Progress, remedy: str = "export the step again"
) -> str:
    """Sum up a folder's files; raise IntegrityError unless each has the bytes that were written."""
    total = sum(file.size for file in listed.values())
    read = running(progress, total)
    for name, file in listed.items():
        if not (folder / name).is_file():
            raise IntegrityError(f"{folder / name}: missing; {remedy}")
        if stored_file(folder / name, read).checksum != file.checksum:
            raise IntegrityError(
                f"{folder / name}: not what was written, by its checksum (altered or swapped); {remedy}"
            )
    return f"{total / 1e6:.1f} MB as written"


def _entries(folder: Path) -> Iterable[str]:
    """Yield the relative names of all below a folder that is no folder; links are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        yield from (os.path.relpath(os.path.join(root, name), folder) for name in (*files, *links))


def running(progress: Progress, total: int) -> Callable[[int], None]:
    """Return a counter that takes the bytes just read and passes on all read so far."""
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return read
