"""Storages are summed up as they are read, in whatever parts: zlib's CRC-32 of all their bytes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from rankdrift.errors import IntegrityError
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
        values = [
            chunk.clone() for chunk in Span(stored, start, count).chunks(itertools.repeat(buffer), sums)
        ]
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
def test_one_altered_bit_is_found(
    stored: StoredTensor, runs: tuple[tuple[int, int], ...], place: int
) -> None:
    with stored.path.open("r+b") as file:
        file.seek(stored.offset + 4 * place)
        byte = file.read(1)[0]
        file.seek(stored.offset + 4 * place)
        file.write(bytes([byte ^ 1]))
    sums = StorageSums([stored])
    buffer = torch.empty(512, dtype=torch.uint8)
    for start, count in runs:
        assert (
            sum(len(chunk) for chunk in Span(stored, start, count).chunks(itertools.repeat(buffer), sums))
            == count
        )
    with pytest.raises(IntegrityError, match=r"x\.pt: its weights are not those that were written"):
        sums.check()


def test_what_is_not_read_from_is_not_checked(stored: StoredTensor) -> None:
    stored.path.write_bytes(b"")
    StorageSums().check()
