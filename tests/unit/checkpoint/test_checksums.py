"""Checksums: what passes through the writer is what lies in the file, by the xxhash library itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
import xxhash

from rankdrift.checkpoint.checksums import StoredFile, checksum_file, stored_file, writing


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


def test_the_file_is_on_the_disk_before_the_writer_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), writing(tmp_path / "x") as writer:
        writer.write(b"1")
