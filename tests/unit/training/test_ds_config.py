"""The DeepSpeed JSON: typos refused, one owner a knob, the bf16 stage 0 trap avoided."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.spec import Spec
from rankdrift.training.ds_config import HONOURED, REFUSED, BatchPlan, merge, stage_of

PLAN = BatchPlan(micro_batch=4, accumulation=2, world_size=2)
ZERO_KEYS = frozenset(
    {"stage", "reduce_bucket_size", "offload_optimizer", "offload_param", "round_robin_gradients"}
    | {"elastic_checkpoint", "overlap_comm", "contiguous_gradients", "sub_group_size"}
    | {"stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters"}
    | {"stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "allgather_partitions"}
)


def merged(tmp_path: Path, given: Any, precision: str = "fp32") -> tuple[dict[str, Any], list[str]]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given))
    return merge(Spec(), path, PLAN, precision, ZERO_KEYS, hidden_size=100)


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
        ({"scheduler": {"type": "OneCycle"}}, ["'scheduler'", "training.schedule"]),
        ({"wandb": {"enabled": True}}, ["'wandb'", "metrics.jsonl and TensorBoard"]),
        ({"compile": {"deepcompile": True}}, ["'compile'", "engine.compile()"]),
        ([], ["a JSON object, got list"]),
    ],
)
def test_refused(tmp_path: Path, given: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        merged(tmp_path, given)
    for part in [*parts, "ds.json"]:
        assert part in str(error.value)


HUGGING_FACE: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}
"""A file in the style of transformers' documentation of ZeRO-3."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_file_written_for_the_trainer_is_taken_as_it_is(tmp_path: Path, precision: str) -> None:
    config, notes = merged(tmp_path, HUGGING_FACE, precision)
    zero = config["zero_optimization"]
    names = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    assert [zero[name] for name in names] == [10_000, 9_000, 1_000]
    assert config["bf16"] == {"enabled": precision == "bf16"}
    assert not {"fp16", "optimizer", "scheduler"} & set(config)
    assert notes == []


def test_all_complaints_come_at_once(tmp_path: Path) -> None:
    changed = json.loads(json.dumps(HUGGING_FACE))
    changed["optimizer"]["params"]["lr"] = 3e-5
    changed["fp16"]["enabled"] = True
    changed["zero_optimization"] |= {"stage": 4, "stag": 3, "sub_group_size": "auto"}
    changed |= {"gradient_clipping": 0.3, "wall_clok": True, "tensorboard": {"enabled": True}}
    with pytest.raises(UserError) as error:
        merged(tmp_path, changed)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("ds.json: ")
    for part in ("'optimizer'", "'fp16'", "stage=4", ".stag'", "sub_group_size='auto'", "0.3", "wall_clok"):
        assert sum(part in line for line in lines) == 1, part
    assert sum("tensorboard" in line and "the recipe owns monitoring" in line for line in lines) == 1
    assert len(lines) == 9


def test_every_key_that_deepspeed_reads_is_in_the_table(root: Path) -> None:
    """Top-level names among the constants of the installed DeepSpeed, and what docs/ds_configs.md lists."""
    from deepspeed.runtime import config, constants

    read = set()
    for name in re.findall(r"param_dict(?:\.get\(|\[|, )([A-Z_]+|'\w+'|\"\w+\")", inspect.getsource(config)):
        read.add(name.strip("'\"") if name[0] in "'\"" else getattr(constants, name, None))
    owned = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    known = HONOURED | set(REFUSED) | owned | {"gradient_clipping", "bf16"}
    assert len(read) > 15
    assert {name for name in read if name} <= known
    documented = (root / "docs" / "ds_configs.md").read_text()
    assert not [name for name in known if f"`{name}`" not in documented]


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
        config, _ = merge(Spec(), path, PLAN, "fp32", zero_keys(), 64)
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


@pytest.mark.parametrize(
    ("path", "compatible", "message"),
    [(None, True, "nvme_path=None"), ("missing", True, "nvme_path='missing'"), (".", False, "libaio-dev")],
)
def test_offload_to_nvme_is_checked_before_the_start(
    monkeypatch: pytest.MonkeyPatch, path: str | None, compatible: bool, message: str
) -> None:
    from rankdrift.training import engine

    monkeypatch.setattr(engine.AsyncIOBuilder, "is_compatible", lambda self, verbose: compatible)
    config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": path}}}
    with pytest.raises(UserError, match=message):
        engine.require_nvme(config)
    monkeypatch.setattr(engine.AsyncIOBuilder, "is_compatible", lambda self, verbose: True)
    config["zero_optimization"]["offload_optimizer"]["nvme_path"] = "."
    engine.require_nvme(config)
