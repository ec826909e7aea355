"""Streamed safetensors files, read back by the official library."""

from __future__ import annotations

import mmap
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file

from rankdrift.export import safetensors_writer
from rankdrift.zero_checkpoint.checksums import ChecksummingWriter, StoredFile
from rankdrift.zero_checkpoint.direct_io import BLOCK, is_cached
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, open_checkpoint


def write(path: Path, checkpoint: ShardedCheckpoint) -> None:
    safetensors_writer.write_safetensors(path, checkpoint.tensors, torch.float32, lambda count: None)


@pytest.mark.parametrize("dtype", safetensors_writer.DTYPES)
@pytest.mark.parametrize("chunk", [8, 2**20])
def test_the_official_reader_finds_the_same_tensors(
    tmp_path: Path,
    zero: Any,
    tensors: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    chunk: int,
) -> None:
    monkeypatch.setattr(safetensors_writer, "_CHUNK", chunk)
    tensors["nothing"] = torch.empty(0, 3)
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path / "step", tensors))
    path, written = tmp_path / "x.safetensors", []
    wanted = safetensors_writer.DTYPES[dtype]
    stored = safetensors_writer.write_safetensors(path, checkpoint.tensors, wanted, written.append)
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name].to(wanted)) for name in tensors)
    assert stored == StoredFile(path.stat().st_size, xxhash.xxh3_128_hexdigest(path.read_bytes()))
    assert sum(written) == sum(tensor.numel() * wanted.itemsize for tensor in tensors.values())
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # so that the tensors lie aligned
    with safe_open(path, "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def cached_bytes(path: Path) -> int:
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        return sum(BLOCK * is_cached(mapped, at, at + 1) for at in range(0, len(mapped), BLOCK))


def bytes_read_from_disk() -> int:
    match = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert match
    return int(match[1])


def test_nothing_is_read_but_the_masters(tmp_path: Path, zero: Any, uncached: Callable[[Path], None]) -> None:
    """Of files that hold other things beside them; and nothing of it stays in the page cache."""
    tensors = {f"layer{n}": torch.full((2**20,), float(n)) for n in range(6)}
    moments = {"state": {0: {"exp_avg": torch.zeros(12 * 2**20)}}}
    folder = zero.save_stage_2(tmp_path / "step", [tensors], 1, base_optimizer_state=moments)
    files = [folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", folder / "mp_rank_00_model_states.pt"]
    for path in files:
        uncached(path)
    before = bytes_read_from_disk()
    checkpoint = open_checkpoint(folder)
    write(tmp_path / "x", checkpoint)
    masters, index = 6 * 2**20 * 4, 2**20
    assert masters <= bytes_read_from_disk() - before <= masters + index
    assert sum(cached_bytes(path) for path in files) <= index


def test_splitting_keeps_order_and_the_limit(tmp_path: Path, zero: Any) -> None:
    sizes = {"a": 10, "b": 10, "c": 50, "d": 5, "e": 15}
    tensors = {name: torch.zeros(size) for name, size in sizes.items()}
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path, tensors))
    parts = safetensors_writer.split(checkpoint.tensors, torch.float32, limit=80)
    assert [list(part) for part in parts] == [["a", "b"], ["c"], ["d", "e"]]
    (part,) = safetensors_writer.split(checkpoint.tensors, torch.bfloat16, 10**6)
    assert list(part) == list(sizes)


def test_a_part_is_not_overwritten_meanwhile(
    tmp_path: Path, zero: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next part is read meanwhile: many small tensors on two ranks, a slow disk."""
    monkeypatch.setattr(safetensors_writer, "_CHUNK", 64)
    tensors = {f"t{n}": torch.randn(n) for n in range(1, 60)} | {"turned": torch.randn(3, 5).T}
    known = ChecksummingWriter.write

    def slow(self: ChecksummingWriter, data: memoryview) -> int:
        time.sleep(0.001)
        return known(self, data)

    monkeypatch.setattr(ChecksummingWriter, "write", slow)
    for save in (
        lambda folder: zero.save_stage_0(folder, tensors),
        lambda folder: zero.save_stage_2(folder, [tensors], 2),
        lambda folder: zero.save_stage_3(folder, [tensors], 2),
    ):
        shutil.rmtree(tmp_path / "step", ignore_errors=True)
        checkpoint = open_checkpoint(save(tmp_path / "step"))
        write(tmp_path / "x", checkpoint)
        loaded = load_file(tmp_path / "x")
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
