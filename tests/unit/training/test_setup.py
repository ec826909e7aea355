from __future__ import annotations

import logging

import pytest

from rankdrift.spec import TrainingSpec
from rankdrift.training import setup
from rankdrift.training.memory import GpuMemory


@pytest.mark.parametrize(("gpu", "rows"), [(False, 8), (True, 64)])
def test_rows_that_are_to_be_found_are_all_on_a_gpu_and_eight_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpu: bool, rows: int
) -> None:
    monkeypatch.setattr(setup, "memory_of_device", lambda: GpuMemory() if gpu else None)
    with caplog.at_level(logging.INFO):
        assert setup._rows_at_once(TrainingSpec(global_batch=64, micro_batch="auto")) == rows
    assert ("is 8 on a CPU" in caplog.text) is not gpu
    assert setup._rows_at_once(TrainingSpec(global_batch=64, micro_batch=5)) == 5
