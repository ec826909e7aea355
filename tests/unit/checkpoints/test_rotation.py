"""Which checkpoints stay: the rules by hand, the newest always, and nothing that somebody reads."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from rankdrift.layout import step_name
from rankdrift.zero_checkpoint.rotation import Retention, remove, remove_leftovers

STEPS = [10, 20, 30, 40, 50]
LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.5}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Retention(), STEPS),
        (Retention(listed=(10,)), STEPS),  # no rule to remove by
        (Retention(last=1), [50]),
        (Retention(last=2), [40, 50]),
        (Retention(last=9), STEPS),
        (Retention(every=20), [20, 40, 50]),
        (Retention(best=1), [20, 50]),
        (Retention(best=2), [20, 40, 50]),
        (Retention(last=2, every=30, best=1, listed=(10, 11)), [10, 20, 30, 40, 50]),
        (Retention(last=1, listed=(10,)), [10, 50]),
    ],
)
def test_rules_add_up_and_the_newest_stays(keep: Retention, kept: list[int]) -> None:
    gone = keep.superfluous(STEPS[::-1], LOSSES)
    assert [step for step in STEPS if step not in gone] == kept
    assert set(gone) <= set(STEPS)


def test_nothing_to_remove_of_nothing() -> None:
    assert Retention(last=1).superfluous([], {}) == []


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / step_name(step)
    path.mkdir()
    (path / "shard.pt").write_bytes(b"1")
    return path


def test_a_removed_checkpoint_is_gone(tmp_path: Path) -> None:
    assert remove(checkpoint(tmp_path, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_read_stays(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    reader = os.open(path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_EX)
    assert not remove(path)
    assert (path / "shard.pt").exists()
    os.close(reader)
    assert remove(path)


def test_a_removal_that_is_cut_short_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    checkpoint(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / step_name(1))
    assert not (tmp_path / step_name(1)).exists()
    (tmp_path / f".{step_name(2)}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
