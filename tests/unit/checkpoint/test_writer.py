"""Streamed safetensors files, read back by the official library."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rankdrift.checkpoint import writer
from rankdrift.checkpoint.shards import open_checkpoint


@pytest.mark.parametrize("dtype", writer.DTYPES)
@pytest.mark.parametrize("chunk", [4, 2**20])
def test_the_official_reader_finds_the_same_tensors(
    tmp_path: Path,
    zero: Any,
    tensors: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    chunk: int,
) -> None:
    monkeypatch.setattr(writer, "_CHUNK", chunk)
    tensors["nothing"] = torch.empty(0, 3)
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path / "step", tensors))
    path, written = tmp_path / "x.safetensors", []
    digest = writer.write_safetensors(path, checkpoint.tensors, writer.DTYPES[dtype], written.append)
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name].to(writer.DTYPES[dtype])) for name in tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(written) == sum(tensor.numel() * writer.DTYPES[dtype].itemsize for tensor in tensors.values())
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # so that the tensors lie aligned
    with safe_open(path, "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_splitting_keeps_order_and_the_limit(tmp_path: Path, zero: Any) -> None:
    sizes = {"a": 10, "b": 10, "c": 50, "d": 5, "e": 15}
    tensors = {name: torch.zeros(size) for name, size in sizes.items()}
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path, tensors))
    parts = writer.split(checkpoint.tensors, torch.float32, limit=80)
    assert [list(part) for part in parts] == [["a", "b"], ["c"], ["d", "e"]]
    assert [list(part) for part in writer.split(checkpoint.tensors, torch.bfloat16, 10**6)] == [list(sizes)]
