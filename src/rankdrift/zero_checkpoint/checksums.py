"""Checksums of whole files: taken while a file is written, compared when it is read again.

The algorithm is XXH3 with 128 bits (https://github.com/Cyan4973/xxHash): it finds accidents, at the speed of
memory, and is no defence against forgery. No torch here: a launcher may ask.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

_CHUNK = 8 * 2**20  # bytes


@dataclass(frozen=True)
class StoredFile:
    """What a manifest states of one file."""

    size: int
    """Bytes."""
    checksum: str
    """XXH3-128 of all bytes, in hexadecimal."""


class ChecksummingWriter:
    """The part of a binary file that a serialiser needs; it sums up what passes through."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._sum = xxhash.xxh3_128()
        self._size = 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of the data; an error is also kept, because serialisers replace it by their own."""
        view = memoryview(data).cast("B")
        try:
            self._handle.write(view)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._sum.update(view)
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand everything to the operating system; serialisers call it."""
        self._handle.flush()

    def stored(self) -> StoredFile:
        """Return what has been written so far."""
        return StoredFile(self._size, self._sum.hexdigest())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[ChecksummingWriter]:
    """Yield a writer of a new file; the operating system has all of it at the end, the disk after ``flush``.

    Raises the operating system's error where something was not written, whatever the serialiser raised.
    """
    with open(path, "wb") as handle:
        writer = ChecksummingWriter(handle)
        try:
            yield writer
        except RuntimeError:
            if not writer.failure:
                raise
        if writer.failure:
            raise writer.failure


def flush(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stored_file(path: Path, progress: Callable[[int], None] | None = None) -> StoredFile:
    """Return the size and checksum of a file, reading all of it; ``progress`` takes the bytes just read."""
    total = xxhash.xxh3_128()
    size = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            total.update(chunk)
            size += len(chunk)
            if progress:
                progress(len(chunk))
    return StoredFile(size, total.hexdigest())


def directory_checksum(path: Path) -> str | None:
    """Return the checksum of a zip file's directory, or None where the file is no zip file.

    The directory states size, place and CRC-32 of everything in the file, so a few kilobytes tell two files
    apart, whatever their size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            start = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError):
        return None
    with open(path, "rb") as handle:
        handle.seek(start)
        return xxhash.xxh3_128(handle.read()).hexdigest()


def checksum_file(path: Path) -> str:
    """Return the checksum of a file's bytes, in hexadecimal."""
    return stored_file(path).checksum
