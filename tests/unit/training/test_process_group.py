"""A rank takes its own GPU before the first exchange; a stand-in for the accelerator keeps the order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest

from rankdrift.errors import UserError
from rankdrift.training import collectives


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of two GPUs and of the group, in order."""
    called: list[Any] = []
    gpus = SimpleNamespace(
        device_name=lambda: "cuda",
        device_count=lambda: 2,
        set_device=lambda number: called.append(("device", number)),
    )
    monkeypatch.setattr(deepspeed, "get_accelerator", lambda: gpus)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: called.append("group"))
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", SimpleNamespace())
    monkeypatch.setattr(collectives.heap, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(collectives, "_share_cores", lambda: None)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)  # as any launcher does
    return called


@pytest.mark.parametrize("local", [0, 1])
def test_a_rank_takes_its_gpu_before_it_joins(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, local: int
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", str(local))
    with collectives.process_group():
        calls.append("inside")
    assert calls == [("device", local), "group", "inside"]


def test_more_ranks_than_gpus(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    message = "rank 2 is number 2 of this machine's ranks, which has 2 GPUs; start at most one"
    with pytest.raises(UserError, match=message), collectives.process_group():
        pass
    assert not calls
