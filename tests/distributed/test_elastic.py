"""Resumed = uninterrupted at every layout, and nearly so when ranks or ZeRO stage change in between.

What is compared right after a resume are the tensors that DeepSpeed's own functions gather from the engine
that saved and from the engine that resumed: neither goes through rankdrift's reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ranks import RECIPE, job, run_of, train_jobs

from rankdrift import files
from rankdrift.layout import RunLayout

pytestmark = pytest.mark.distributed

STEPS, SAVED, TURN = 4, 2, 3
ELASTIC = RECIPE | {
    # two tasks mixed; 20 rows, so that step 2 is inside the first epoch and step 4 spans two
    "data": {"tasks": ["topic", "describe"], "train_limit": 10, "validation_limit": 4},
    "training": {
        **{"steps": STEPS, "global_batch": 6, "micro_batch": 1},  # of one, two or three ranks
        **{"warmup_steps": 1, "learning_rate": 2e-3, "clip": 0.5, "precision": "fp32"},
        **{"eval_rows": 1, "eval_every": STEPS, "save_every": SAVED, "probe_every": 1},
    },
}
LORA = ["method.name=lora", "method.rank=4"]
METHODS = {
    "full-fp32": ["training.weight_decay=0.1"],  # two groups
    "full-bf16": ["training.precision=bf16", "training.weight_decay=0"],
    "lora-fp32": [*LORA, "method.dropout=0.1", "training.weight_decay=0"],
    "lora-bf16": [*LORA, "training.precision=bf16", "training.weight_decay=0.1"],
}
CPU = {"device": "cpu"}


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **settings}}


ZERO = {
    **{f"z{stage}": zero(stage) for stage in range(4)},
    # small sub-groups: several flat vectors a group; some parameters never released, some not
    "z3s": zero(3, sub_group_size=3000, stage3_param_persistence_threshold=500),
    "z2o": zero(2, offload_optimizer=CPU),
    "z3o": zero(3, offload_optimizer=CPU, offload_param=CPU),
    "z2a": zero(2, parameter_alignment=True),
    # DeepSpeed's BF16_Optimizer
    "z1acc": zero(1) | {"data_types": {"grad_accum_dtype": "fp32"}},
}
SAME = [
    *((method, "z0") for method in METHODS if "fp32" in method),  # in bf16 run as stage 1
    *((method, zero) for method in METHODS for zero in ("z1", "z2", "z3")),
    *(("full-fp32", zero) for zero in ("z3s", "z2o", "z3o")),
    *(("full-bf16", zero) for zero in ("z1acc", "z2a", "z2o", "z3o")),
]
# from two ranks: (method, ZeRO before, ranks after, ZeRO after)
OTHER = [
    ("full-fp32", "z2", 2, "z3s"),
    ("full-fp32", "z3", 2, "z2o"),
    ("full-fp32", "z0", 2, "z2"),
    ("full-fp32", "z3s", 2, "z0"),
    ("full-fp32", "z1", 1, "z3"),
    ("full-fp32", "z3", 1, "z0"),
    ("lora-bf16", "z2", 1, "z3"),
    ("full-bf16", "z1acc", 1, "z2"),
    ("full-fp32", "z2", 3, "z2"),
    ("full-fp32", "z3o", 3, "z3s"),
    ("full-bf16", "z2a", 3, "z1acc"),
    ("full-bf16", "z3", 3, "z2a"),
]


class Runs:
    """Runs below one folder; those of one number of ranks are trained in one start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, config in ZERO.items():
            (folder / f"{name}.json").write_text(json.dumps(config))

    def job(
        self, name: str, method: str, zero: str, *overrides: str, copy_of: str | None = None, **more: Any
    ) -> dict[str, Any]:
        if copy_of:
            more |= {"copy_of": str(run_of(self.folder, copy_of).root), "copy_step": SAVED}
        config = self.folder / f"{zero}.json"
        return job(self.folder, name, config, *METHODS[method], *overrides, states=True, **more)

    def run(self, name: str) -> RunLayout:
        return run_of(self.folder, name)

    def losses(self, name: str) -> np.ndarray:
        rows = files.read_jsonl(self.run(name).metrics)
        return np.array([[row["step"], row["loss"]] for row in rows if row["split"] == "train"])

    def state(self, name: str, file: str) -> dict[str, Any]:
        return torch.load(self.run(name).root / file)  # type: ignore[no-any-return]


def other_name(method: str, before: str, ranks: int, after: str) -> str:
    return f"{method}-{before}-to-{ranks}{after}"


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("elastic"))

    def others(ranks: int) -> list[dict[str, Any]]:
        cases = [case for case in OTHER if case[2] == ranks]
        return [runs.job(other_name(*c), c[0], c[3], copy_of=f"{c[0]}-{c[1]}") for c in cases]

    whole = [runs.job(f"{method}-{zero}", method, zero) for method, zero in SAME]
    again = [runs.job(f"{m}-{zero}-resumed", m, zero, copy_of=f"{m}-{zero}") for m, zero in SAME]
    turn = f"training.save_steps=[{TURN}]"
    chain = runs.job("chain", "full-fp32", "z3", turn, copy_of="full-fp32-z2", stop_at=TURN)
    last = runs.job("chain", "full-fp32", "z1")
    two = [*whole, *again, *others(2)]
    train_jobs(runs.folder, ELASTIC, [(2, two), (1, [*others(1), chain]), (3, others(3)), (2, [last])])
    return runs


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["facts"] == expected["facts"]
    assert list(found["state"]) == list(expected["state"])
    for name, tensors in expected["state"].items():
        for kind, tensor in tensors.items():
            assert torch.equal(found["state"][name][kind], tensor), (name, kind)


@pytest.mark.parametrize(("method", "zero"), SAME)
def test_resumed_equals_uninterrupted_bit_for_bit(runs: Runs, method: str, zero: str) -> None:
    name, again = f"{method}-{zero}", f"{method}-{zero}-resumed"
    assert_same(runs.state(again, f"restored-{SAVED}.pt"), runs.state(name, f"saved-{SAVED}.pt"))
    assert runs.losses(again).tolist() == runs.losses(name).tolist()
    assert_same(runs.state(again, f"saved-{STEPS}.pt"), runs.state(name, f"saved-{STEPS}.pt"))
    gradients, expected = (files.read_table(runs.run(run).probe("gradients")) for run in (again, name))
    assert set(expected["step"]) == set(range(1, STEPS + 1))
    pd.testing.assert_frame_equal(gradients, expected, check_exact=True)


@pytest.mark.parametrize("case", OTHER, ids=lambda case: other_name(*case))
def test_another_layout_takes_up_the_same_state(runs: Runs, case: tuple[str, str, int, str]) -> None:
    saved = runs.state(f"{case[0]}-{case[1]}", f"saved-{SAVED}.pt")
    found = runs.state(other_name(*case), f"restored-{SAVED}.pt")
    # the micro-steps of a step depend on the number of ranks
    saved["facts"]["micro_steps"] = saved["facts"]["micro_steps"] * 2 // case[2]
    assert_same(found, saved)


@pytest.mark.parametrize("case", OTHER, ids=lambda case: other_name(*case))
def test_another_layout_goes_on_along_the_same_curve(runs: Runs, case: tuple[str, str, int, str]) -> None:
    """Only the order of sums differs: 2^-24 an addition in fp32, 2^-8 in bf16 (see docs/footguns.md)."""
    name = f"{case[0]}-{case[1]}"
    losses, expected = runs.losses(other_name(*case)), runs.losses(name)
    np.testing.assert_allclose(losses, expected, rtol=1e-6 if "fp32" in name else 1e-3)


def test_two_ranks_then_one_then_two(runs: Runs) -> None:
    """2 ranks ZeRO-2, then 1 rank ZeRO-3, then 2 ranks ZeRO-1."""
    saved, restored = (runs.state("chain", f"{kind}-{TURN}.pt") for kind in ("saved", "restored"))
    saved["facts"]["micro_steps"] //= 2
    assert_same(restored, saved)
    np.testing.assert_allclose(runs.losses("chain"), runs.losses("full-fp32-z2"), rtol=1e-6)


def test_a_change_of_layout_is_reported(runs: Runs) -> None:
    log = runs.run("chain").log.read_text()
    assert "resuming a checkpoint of 2 ranks, ZeRO-2 on 1 rank, ZeRO-3" in log
    assert "resuming a checkpoint of 1 rank, ZeRO-3 on 2 ranks, ZeRO-1" in log
    assert "resuming a checkpoint" not in runs.run("full-fp32-z2-resumed").log.read_text()
