from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rankdrift.errors import UserError
from rankdrift.methods import Method, adalora, eva, lora, lora_ga
from rankdrift.spec import TrainingSpec, parse_spec
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


def data_of(lengths: list[int]) -> Any:
    return SimpleNamespace(train=lengths, lengths=np.array(lengths))


def test_a_step_has_no_row_twice() -> None:
    setup._require_rows(3, data_of([4, 5, 6]))
    with pytest.raises(UserError, match=r"global_batch=4, but there are 3 training rows: .* at most 3"):
        setup._require_rows(4, data_of([4, 5, 6]))


def test_rows_are_as_long_as_the_model_reads(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup._require_context(data_of([256, 9]), tiny)
    with pytest.raises(
        UserError, match=r"longest row has 257 tokens, and .* reads 256 at most; set it to 256"
    ):
        setup._require_context(data_of([9, 257]), tiny)
    monkeypatch.setattr(setup, "stated_context", lambda base: None)
    setup._require_context(data_of([9999]), tiny)


@pytest.mark.parametrize(
    ("zero", "precision", "message"),
    [
        ({"stage": 0}, "bf16", "precision=bf16 at ZeRO stage 0: .*zero_optimization.stage 1, 2 or 3"),
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, "fp32", "offload_optimizer: .* to NVMe"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "bf16", "offload_optimizer: "),
    ],
)
def test_a_rank_is_allocated_by_all_masters(zero: dict[str, Any], precision: str, message: str) -> None:
    spec = parse_spec({"method": {"name": "adalora"}})
    with pytest.raises(UserError, match=message):
        setup._require_possible(adalora.METHOD, spec, {"zero_optimization": zero}, precision)
    setup._require_possible(lora.METHOD, spec, {"zero_optimization": zero}, precision)
    for possible in ({"stage": 0}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}):
        setup._require_possible(adalora.METHOD, spec, {"zero_optimization": possible}, "fp32")


@pytest.mark.parametrize("method", [eva.METHOD, lora_ga.METHOD])
def test_kernels_of_a_gpu_do_not_read_rows_on_a_cpu(method: Method) -> None:
    spec = parse_spec({"method": {"name": method.name}, "model": {"liger": True}})
    with pytest.raises(UserError, match=f"method.name={method.name}: .* leave model.liger off"):
        setup._require_possible(method, spec, {"zero_optimization": {"stage": 2}}, "fp32")
    setup._require_possible(lora.METHOD, spec, {"zero_optimization": {"stage": 2}}, "fp32")
