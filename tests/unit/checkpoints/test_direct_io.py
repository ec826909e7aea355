"""Files read and written past the page cache: their bytes, and what happens where that is not possible."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankdrift.zero_checkpoint import direct_io
from rankdrift.zero_checkpoint.direct_io import BLOCK, BlockReader, DirectFile, is_cached

Evict = Callable[[Path], None]
Stored = tuple[Path, bytes]


@pytest.fixture
def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system that does not know direct access."""
    known = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return known(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)


def write(path: Path, parts: list[bytes]) -> None:
    with DirectFile(path) as file:
        assert [file.write(part) for part in parts] == [len(part) for part in parts]


SIZES = [[], [0], [1], [3, BLOCK, 1], [2 * BLOCK], [7 * BLOCK + 5, 9, 3 * BLOCK]]


@pytest.mark.parametrize("buffer", [2 * BLOCK, 1000])  # the system refuses what is not of whole blocks
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_file_holds_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], buffer: int
) -> None:
    monkeypatch.setattr(direct_io, "_BUFFER", buffer)
    parts = [random.Random(size).randbytes(size) for size in sizes]
    write(tmp_path / "x", parts)
    assert (tmp_path / "x").read_bytes() == b"".join(parts)


@pytest.mark.usefixtures("refuse_to_open")
def test_a_disk_without_direct_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evict: Evict) -> None:
    monkeypatch.setattr(direct_io, "_BUFFER", 2 * BLOCK)
    data = random.Random(3).randbytes(7 * BLOCK + 1)
    write(tmp_path / "x", [data])
    assert (tmp_path / "x").read_bytes() == data
    evict(tmp_path / "x")
    assert read(tmp_path / "x", 0, 3 * BLOCK) == data[: 3 * BLOCK]


@pytest.mark.parametrize("size", [direct_io._BUFFER, 10], ids=["when writing", "when closing"])
def test_a_full_disk_is_an_error(size: int) -> None:
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"), [bytes(size)])


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "absent" / "x")


def cached(path: Path, start: int, stop: int) -> bool:
    with open(path, "rb") as handle:
        return is_cached(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY), start, stop)


def read(path: Path, offset: int, needed: int, space: int = 0, at: int = 0, direct: bool = True) -> bytes:
    """Read through memory that begins ``at`` bytes behind a page's start."""
    with open(path, "rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    memory = memoryview(mmap.mmap(-1, 16 * BLOCK))[at : at + (space or needed)]
    with BlockReader(path, mapped, offset, offset + needed, direct) as file:
        file.read_blocks(memory, offset, needed)
    return bytes(memory[:needed])


@pytest.fixture
def stored(tmp_path: Path, uncached: Evict) -> Stored:
    """A file of nine and a bit blocks that is not in the page cache."""
    path, data = tmp_path / "x", random.Random(9).randbytes(9 * BLOCK + 100)
    path.write_bytes(data)
    uncached(path)
    return path, data


def test_what_is_read_directly_stays_out_of_the_page_cache(stored: Stored) -> None:
    path, data = stored
    assert read(path, 2 * BLOCK, 3 * BLOCK) == data[2 * BLOCK : 5 * BLOCK]
    assert read(path, 8 * BLOCK, BLOCK + 100, 2 * BLOCK) == data[8 * BLOCK :]  # up to the end
    assert not any(cached(path, block * BLOCK, block * BLOCK + 1) for block in range(10))


@pytest.mark.parametrize("first", [0, 2])  # from a file's start the system would read ahead
def test_what_may_be_read_again_goes_through_the_page_cache(stored: Stored, first: int) -> None:
    path, data = stored
    wanted = slice(first * BLOCK, (first + 3) * BLOCK)
    assert read(path, wanted.start, 3 * BLOCK, direct=False) == data[wanted]
    found = [cached(path, block * BLOCK, block * BLOCK + 1) for block in range(10)]
    assert found == [first <= block < first + 3 for block in range(10)]


def test_what_is_in_the_page_cache_is_read_there(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = stored
    assert path.read_bytes() == data
    assert cached(path, 1, len(data))
    monkeypatch.setattr(direct_io, "_open_direct", lambda *arguments: pytest.fail("past the page cache"))
    assert read(path, 2 * BLOCK, 3 * BLOCK) == data[2 * BLOCK : 5 * BLOCK]


def test_memory_that_starts_within_a_block_is_filled_too(stored: Stored, evict: Evict) -> None:
    path, data = stored
    assert read(path, 2 * BLOCK, 3 * BLOCK, at=1) == data[2 * BLOCK : 5 * BLOCK]
    evict(path)
    assert read(path, 17, 50) == data[17:67]


def test_a_page_that_is_missing_is_noticed(stored: Stored) -> None:
    path, _ = stored
    with open(path, "rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(handle.fileno(), 2 * BLOCK, 3 * BLOCK)
    assert cached(path, 3 * BLOCK, 5 * BLOCK)
    assert cached(path, 3 * BLOCK + 7, 3 * BLOCK + 9)
    assert not cached(path, 3 * BLOCK - 1, 5 * BLOCK)
    assert not cached(path, 3 * BLOCK, 5 * BLOCK + 1)


def test_a_file_that_ends_early_is_an_error(stored: Stored) -> None:
    path, _ = stored
    with pytest.raises(OSError, match="x ends early"):
        read(path, 8 * BLOCK, 2 * BLOCK)
