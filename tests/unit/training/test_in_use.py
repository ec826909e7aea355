"""What a heap has in use is what was asked for and not given back, at the fullest moment."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rankdrift.training import in_use
from rankdrift.training.in_use import Watch, watching

MIB = 2**20
SIZE = 96 * MIB

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")


def grown(watch: Watch) -> int:
    assert watch.peak is not None
    return watch.peak - watch.baseline


def test_the_most_stays_when_blocks_are_given_back() -> None:
    watch = Watch()
    block = bytearray(SIZE)
    watch.look()
    del block
    watch.look()
    assert SIZE <= grown(watch) < SIZE + MIB
    assert watch.baseline > SIZE // 4  # of an interpreter with torch


def test_a_block_is_seen_while_it_is_there() -> None:
    with watching() as watch:
        block = bytearray(SIZE)
        time.sleep(20 * in_use.PERIOD)
        del block
    assert abs(grown(watch) - SIZE) < 16 * MIB  # others of this process take and give back as well
    before = watch.most
    block = bytearray(2 * SIZE)
    time.sleep(5 * in_use.PERIOD)
    assert watch.most == before  # nobody looks any more
    assert len(block) == 2 * SIZE


def test_pages_of_a_mapped_file_are_in_use(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    watch = Watch()
    mapped = np.memmap(path, mode="r")
    assert mapped.sum() == 0  # which reads it
    watch.look()
    assert SIZE <= grown(watch) < SIZE + 4 * MIB


def test_without_a_count_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "bytes_in_use", lambda: None)
    with watching() as watch:
        watch.look()
    assert watch.peak is None
