"""Checksums: what passes through the writer is what lies in the file, by the xxhash library itself."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from rankdrift.zero_checkpoint import checksums
from rankdrift.zero_checkpoint.checksums import (
    StoredFile,
    checksum_file,
    directory_checksum,
    stored_file,
    writing,
)


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


def test_what_the_system_refused_is_said_whatever_the_serialiser_says(
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
