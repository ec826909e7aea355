"""Sums of what is written and read: files by xxhash itself, storages by zlib's CRC-32 of all their bytes."""

from __future__ import annotations

import errno
import io
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from rankdrift.errors import IntegrityError
from rankdrift.zero_checkpoint import checksums
from rankdrift.zero_checkpoint.checksums import (
    StoredFile,
    checksum_file,
    directory_checksum,
    stored_file,
    writing,
)
from rankdrift.zero_checkpoint.storage_sums import StorageSums
from rankdrift.zero_checkpoint.torch_file import StoredTensor, read_archive
from rankdrift.zero_checkpoint.zero_layouts import Span

COUNT = 1000


@pytest.fixture
def stored(tmp_path: Path) -> StoredTensor:
    torch.save({"a": torch.arange(COUNT, dtype=torch.float32)}, tmp_path / "x.pt")
    tensor: StoredTensor = read_archive(tmp_path / "x.pt")["a"]
    return tensor


def read(stored: StoredTensor, sums: StorageSums, *runs: tuple[int, int]) -> None:
    buffer = torch.empty(512, dtype=torch.uint8)  # 128 elements: several parts a run
    for start, count in runs:
        chunks = Span(stored, start, count).chunks(itertools.repeat(buffer), sums)
        values = [chunk.clone() for chunk in chunks]
        assert torch.equal(torch.cat(values), torch.arange(start, start + count, dtype=torch.float32))


RUNS = [
    ((0, COUNT),),
    ((0, 10), (10, COUNT - 10)),
    ((0, 10), (17, 300), (400, COUNT - 401)),  # padding between and behind
    ((0, 600), (300, 500)),  # shared parameters are read twice
    ((500, 100), (0, 500)),
    (),  # nothing of it is asked for
]


@pytest.mark.parametrize("runs", RUNS)
def test_a_whole_storage_is_accepted(stored: StoredTensor, runs: tuple[tuple[int, int], ...]) -> None:
    sums = StorageSums([stored])
    read(stored, sums, *runs)
    sums.check()


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("place", [0, 12, 350, COUNT - 1])
def test_an_altered_bit_is_found(stored: StoredTensor, runs: tuple[tuple[int, int], ...], place: int) -> None:
    with stored.path.open("r+b") as file:
        file.seek(stored.offset + 4 * place)
        byte = file.read(1)[0]
        file.seek(stored.offset + 4 * place)
        file.write(bytes([byte ^ 1]))
    sums = StorageSums([stored])
    buffer = torch.empty(512, dtype=torch.uint8)
    for start, count in runs:
        chunks = Span(stored, start, count).chunks(itertools.repeat(buffer), sums)
        assert sum(map(len, chunks)) == count
    with pytest.raises(IntegrityError, match=r"x\.pt: its weights are not those that were written"):
        sums.check()


def test_what_is_not_read_from_is_not_checked(stored: StoredTensor) -> None:
    stored.path.write_bytes(b"")
    StorageSums().check()


def test_a_file_of_torch_is_summed_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    tensors = {"a": torch.arange(100_000, dtype=torch.float32), "b": torch.ones(3, dtype=torch.bfloat16)}
    with writing(path) as writer:
        torch.save(tensors, writer)
    content = path.read_bytes()
    assert writer.stored() == StoredFile(len(content), xxhash.xxh3_128_hexdigest(content))
    loaded = torch.load(path, weights_only=True)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_file_is_summed_in_chunks(tmp_path: Path) -> None:
    content = os.urandom(9 * 2**20)
    (tmp_path / "x").write_bytes(content)
    seen: list[int] = []
    assert stored_file(tmp_path / "x", seen.append).size == len(content) == sum(seen)
    assert len(seen) > 1
    assert checksum_file(tmp_path / "x") == xxhash.xxh3_128_hexdigest(content)


class FullDisk(io.FileIO):
    """A file that takes no bytes."""

    def write(self, data: Any, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_the_system_refused_is_said_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a write fails, torch raises RuntimeError about positions in its own file."""
    monkeypatch.setattr(checksums, "open", FullDisk, raising=False)
    with pytest.raises(OSError, match="No space"), writing(tmp_path / "x") as writer:
        torch.save({"a": torch.ones(3)}, writer)


def test_other_errors_of_the_serialiser_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of its own"), writing(tmp_path / "x"):
        raise RuntimeError("of its own")


def test_a_zip_files_directory_is_summed(tmp_path: Path) -> None:
    """By hand: the directory begins where the end record says (APPNOTE 4.3.16), at offset 16 of it."""
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    end = content.rindex(b"PK\5\6")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    assert directory_checksum(tmp_path / "x.pt") == xxhash.xxh3_128_hexdigest(content[start:])
    (tmp_path / "x.json").write_text("{}")
    assert directory_checksum(tmp_path / "x.json") is None
