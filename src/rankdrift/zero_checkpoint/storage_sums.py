"""CRC-32 of storages, taken while their elements are read for an export, and compared with what was written.

A manifest knows each file by its zip directory, and the directory states the CRC-32 of every storage in it.
So an export that reads nothing but the master weights still notices a single altered bit in them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rankdrift.errors import IntegrityError
from rankdrift.zero_checkpoint.torch_file import StoredTensor
from rankdrift.zero_checkpoint.zip_members import Member

_CHUNK = 2**20  # bytes


@dataclass
class _Sum:
    """One storage: how far it has been read from its start, and the CRC-32 of that."""

    path: Path
    member: Member
    position: int
    crc: int = 0

    def take(self, place: int, data: memoryview) -> None:
        """Take bytes that begin at a place of the file; what was taken before counts once."""
        self.read_up_to(place)
        new = data[self.position - place :]
        self.crc = zlib.crc32(new, self.crc)
        self.position += len(new)

    def read_up_to(self, place: int) -> None:
        """Read what nobody asked for: the padding between and behind parameters."""
        if place <= self.position:
            return
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.position)
            while chunk := file.read(min(_CHUNK, place - self.position)):
                self.crc = zlib.crc32(chunk, self.crc)
                self.position += len(chunk)


class StorageSums:
    """The storages that some stored tensors lie in, and what has been read of each."""

    def __init__(self, tensors: Iterable[StoredTensor] = ()) -> None:
        self._sums: dict[tuple[Path, int], _Sum] = {}
        for tensor in tensors:
            self.take(tensor, tensor.member.start, memoryview(b""))

    def take(self, tensor: StoredTensor, place: int, data: memoryview) -> None:
        """Take bytes of a stored tensor, read at a place (in bytes) of its file."""
        start = tensor.member.start
        known = self._sums.setdefault((tensor.path, start), _Sum(tensor.path, tensor.member, start))
        known.take(place, data)

    def check(self) -> None:
        """Read what has not been read; raise IntegrityError unless every storage is as it was written."""
        for found in self._sums.values():
            found.read_up_to(found.member.start + found.member.size)
            if found.crc != found.member.crc:
                raise IntegrityError(
                    f"{found.path}: its weights are not those that were written (CRC-32 {found.crc:08x}, "
                    f"written {found.member.crc:08x}); use another step, or copy the file again"
                )
