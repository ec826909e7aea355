"""Checkpoints of a run that trains are exported as they come, whatever becomes of them meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.errors import IntegrityError, RankError
from rankdrift.export import watch as subject
from rankdrift.export.consolidate import consolidate
from rankdrift.export.watch import Watch, watch
from rankdrift.layout import RunLayout

MakeRun = Callable[..., RunLayout]


def state(run: RunLayout, name: str) -> None:
    run.status.write_text(json.dumps({"state": name, "step": 1}))


@pytest.fixture
def train() -> Iterator[Callable[[RunLayout], None]]:
    """Return a function that makes a run be trained, by a process that holds its folder."""
    with contextlib.ExitStack() as handles:

        def train(run: RunLayout) -> None:
            handle = handles.enter_context(run.lock.open("w"))
            fcntl.flock(handle, fcntl.LOCK_EX)
            state(run, "training")

        yield train


@pytest.fixture
def save(zero: Any, tensors: dict[str, torch.Tensor]) -> Callable[[RunLayout, int], Path]:
    """Return a function that adds a checkpoint, whole, to a run."""

    def save(run: RunLayout, step: int) -> Path:
        folder = zero.save_stage_2(run.checkpoint(step), [tensors], 2)
        zero.record_of(step, world_size=2).write(folder)
        return folder

    return save


def test_new_checkpoints_are_exported_once(make_run: MakeRun, save: Any, train: Any) -> None:
    run, lines = make_run(1), []
    watching = Watch(run, progress=lines.append)
    assert watching.look()  # no status yet: it may only have begun
    train(run)
    save(run, 2)
    assert watching.look()
    assert watching.look()
    assert [line for line in lines if "%" not in line] == [f"step-00000{n}: {run.export(n)}" for n in (1, 2)]
    assert watching.done == {1, 2}


@pytest.mark.parametrize("name", ["finished", "failed"])
def test_it_ends_with_the_run(make_run: MakeRun, save: Any, train: Any, name: str) -> None:
    """A checkpoint that comes between two looks, just before the end, is exported too."""
    run, lines = make_run(1), []
    train(run)
    threading.Timer(0.3, lambda: (save(run, 2), state(run, name))).start()
    assert watch(run, progress=lines.append, seconds=0.02) == [1, 2]
    assert lines[0].startswith(f"{run.checkpoints}: watched every 0.02 s")
    assert lines[-1] == f"{run.root}: the run is {name}; 2 checkpoints are exported"
    assert run.export(2).is_dir()


@pytest.mark.parametrize("name", ["training", "lost"])
def test_it_ends_with_a_run_that_was_killed(name: str, make_run: MakeRun, save: Any) -> None:
    """It says that it trains, or has lost a rank, and nobody does; what it had saved is exported first."""
    run = make_run(1)
    state(run, name)
    save(run, 2)
    with pytest.raises(RankError, match=r"no process trains in it any more.* 2 checkpoints are exported"):
        watch(run, seconds=0.02)
    assert run.export(2).is_dir()


def test_a_killed_run_that_is_started_again_is_watched_on(make_run: MakeRun, train: Any) -> None:
    run = make_run(1)
    state(run, "training")
    watching = Watch(run)
    assert watching.look()
    train(run)
    assert all(watching.look() for _ in range(3))


def test_a_preempted_run_may_go_on(make_run: MakeRun) -> None:
    run = make_run(1)
    state(run, "preempted")
    assert Watch(run).look()


def test_the_state_is_asked_before_the_checkpoints(make_run: MakeRun, save: Any, monkeypatch: Any) -> None:
    """Else the last checkpoint of a run that ends between the two questions would never be seen."""
    run = make_run(1)
    state(run, "training")
    known = subject.complete_steps

    def ends_now(folder: Path) -> list[int]:
        steps = known(folder)
        save(run, 2)
        state(run, "finished")
        return steps

    monkeypatch.setattr(subject, "complete_steps", ends_now)
    watching = Watch(run)
    assert watching.look()
    assert not watching.look()
    assert watching.done == {1, 2}


@pytest.mark.parametrize("how", ["folder", "shard"])
def test_a_rotated_checkpoint_is_no_failure(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run, lines = make_run(1, 2), []
    state(run, "finished")

    def vanishes(run: RunLayout, step: int, *rest: Any) -> Path:
        if step == 1:
            shard = run.checkpoint(1) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
            shutil.rmtree(run.checkpoint(1)) if how == "folder" else shard.unlink()
        return consolidate(run, step, *rest)

    monkeypatch.setattr(subject, "consolidate", vanishes)
    assert watch(run, progress=lines.append) == [2]
    assert "step-000001: removed by the run while it was read; not exported" in lines
    assert not run.export(1).exists()


def test_a_damaged_checkpoint_is_said_once_and_ends_in_its_error(make_run: MakeRun) -> None:
    run, lines = make_run(1, 2), []
    shard = run.checkpoint(1) / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    data = shard.read_bytes()
    shard.write_bytes(b"\0" * len(data))
    watching = Watch(run, progress=lines.append)
    watching.look()
    watching.look()
    assert sum(shard.name in line for line in lines) == 1
    assert (watching.done, set(watching.failed)) == ({2}, {1})
    state(run, "finished")
    with pytest.raises(IntegrityError, match=shard.name):
        watch(run)
    shard.write_bytes(data)
    assert watch(run) == [1, 2]
