"""The DeepSpeed JSON: typos refused, one owner a knob, the bf16 stage 0 trap avoided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.spec import Spec
from rankdrift.training.ds_config import BatchPlan, merge, stage_of

PLAN = BatchPlan(micro_batch=4, accumulation=2, world_size=2)
ZERO_KEYS = frozenset(
    {"stage", "reduce_bucket_size", "offload_optimizer", "offload_param", "round_robin_gradients"}
    | {"elastic_checkpoint"}
)


def merged(tmp_path: Path, given: Any, precision: str = "fp32") -> tuple[dict[str, Any], list[str]]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given))
    return merge(Spec(), path, PLAN, precision, ZERO_KEYS)


def test_the_recipe_fills_what_it_owns(tmp_path: Path) -> None:
    config, notes = merged(tmp_path, {"zero_optimization": {"stage": 2}}, "bf16")
    assert config["train_batch_size"] == 16 == PLAN.micro_batch * PLAN.accumulation * PLAN.world_size
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"] == {"enabled": True}
    assert stage_of(config) == 2
    assert notes == []


def test_equal_and_auto_values_are_no_conflict(tmp_path: Path) -> None:
    config, _ = merged(tmp_path, {"gradient_clipping": 1.0, "train_batch_size": "auto"})
    assert (config["gradient_clipping"], config["train_batch_size"]) == (1.0, 16)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"gradient_cliping": 0.3}, ["unknown key 'gradient_cliping'", "did you mean 'gradient_clipping'"]),
        ({"zero_optimization": {"stag": 2}}, ["'zero_optimization.stag'", "did you mean 'stage'"]),
        ({"zero_optimization": {"stage": 4}}, ["stage=4", "0, 1, 2 and 3"]),
        ({"zero_optimization": 2}, ["'zero_optimization' must be an object"]),
        ({"zero_optimization": {"round_robin_gradients": True}}, ["round_robin_gradients=true", "remove"]),
        ({"gradient_clipping": 0.5}, ["0.5", "training.clip", "1.0"]),
        ({"train_batch_size": 8}, ["8", "training.global_batch", "16"]),
        ({"bf16": {"enabled": True}}, ["training.precision", "True", "False"]),
        ({"optimizer": {"type": "Adam"}}, ["'optimizer'", "training.learning_rate"]),
        ({"scheduler": {}}, ["'scheduler'", "training.schedule"]),
        ([], ["a JSON object, got list"]),
    ],
)
def test_refused(tmp_path: Path, given: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        merged(tmp_path, given)
    for part in [*parts, "ds.json"]:
        assert part in str(error.value)


def test_bf16_without_zero_runs_as_stage_1_and_says_so(tmp_path: Path) -> None:
    config, notes = merged(tmp_path, {"zero_optimization": {"stage": 0}}, "bf16")
    assert stage_of(config) == 1
    assert "stage 1" in notes[0]
    config, notes = merged(tmp_path, {}, "fp32")
    assert stage_of(config) == 0
    assert notes == []


def test_every_shipped_configuration_is_known_to_the_installed_deepspeed(root: Path) -> None:
    from rankdrift.training.engine import zero_keys

    shipped = sorted((root / "ds_configs").glob("*.json"))
    assert [path.stem for path in shipped] == [
        *("zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
    ]
    for path in shipped:
        config, _ = merge(Spec(), path, PLAN, "fp32", zero_keys())
        assert stage_of(config) == int(path.stem[4])


@pytest.mark.parametrize(
    ("zero", "named"),
    [
        ({"offload_optimizer": {"device": "nvme"}}, "offload_optimizer.device=nvme"),
        ({"offload_param": {"device": "nvme"}}, "offload_param.device=nvme"),
        ({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "ratio below 1"),
        ({"offload_optimizer": {"device": "cpu", "ratio": 1.0}, "offload_param": {"device": "cpu"}}, None),
    ],
)
def test_offload_from_which_no_run_resumes_is_warned_of(
    tmp_path: Path, zero: dict[str, Any], named: str | None
) -> None:
    _, notes = merged(tmp_path, {"zero_optimization": {"stage": 3, **zero}})
    assert len(notes) == (named is not None)
    assert all(named in note and "cannot resume" in note for note in notes if named)


def test_a_layout_that_is_not_read_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="elastic_checkpoint=true"):
        merged(tmp_path, {"zero_optimization": {"stage": 2, "elastic_checkpoint": True}})
