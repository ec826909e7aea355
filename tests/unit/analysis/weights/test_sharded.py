"""Sharded checkpoints give the numbers of the exports they would become, and are left as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from rankdrift import files
from rankdrift.analysis.contract import Params
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.sources import models as models_of
from rankdrift.analysis.sources.folders import is_adapter, model_tensors
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.analysis.sources.weights import Projection, TunedWeights, open_weights
from rankdrift.errors import IntegrityError, UserError
from rankdrift.layout import RunLayout

STEP = 4
QUERY = Projection(0, "q_proj")
Tensors = Mapping[str, torch.Tensor]
Write = Callable[[ModuleType, Path, Tensors], Path]


def halves(tensors: Tensors) -> list[Tensors]:
    """Two optimizer groups, as matrices with weight decay and vectors without it."""
    groups = [{n: t for n, t in tensors.items() if (t.ndim > 1) == big} for big in (True, False)]
    return [group for group in groups if group]


LAYOUTS: dict[str, Write] = {
    "stage 0": lambda zero, folder, tensors: zero.save_stage_0(folder, tensors),
    "stage 2": lambda zero, folder, tensors: zero.save_stage_2(folder, halves(tensors), 2),
    "aligned": lambda zero, folder, tensors: zero.save_stage_2(folder, halves(tensors), 3, gap=5),
    "padded": lambda zero, folder, tensors: zero.save_stage_2(folder, halves(tensors), 5, keep_padding=True),
    "stage 3": lambda zero, folder, tensors: zero.save_stage_3(folder, halves(tensors), 3),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "up_proj"],
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"up_proj": 7},
    },
    "embedding": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"r": 3, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "saved whole": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm", "up_proj"]},
}


@pytest.fixture
def saved(models: Any, zero: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Return save(tensors, export, layout): a checkpoint of the tensors in a run described by the export."""

    def save(tensors: Tensors, export: Path, layout: str = "stage 2") -> Path:
        run = RunLayout(tmp_path / "run")
        run.model.mkdir(parents=True)
        for path in export.glob("*config.json"):
            shutil.copy(path, run.model)
        stored = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        folder = LAYOUTS[layout](zero, run.checkpoint(STEP), stored)
        digest = files.weights_digest(models.base)
        zero.record_of(STEP, base=str(models.base), base_digest=digest).write(folder)
        return folder

    return save


def trained(model: PeftModel) -> Tensors:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def full(models: Any, saved: Callable[..., Path]) -> Callable[[str], Path]:
    """Return full(layout): a checkpoint of the fully tuned model."""

    def save(layout: str = "stage 2") -> Path:
        model = LlamaForCausalLM.from_pretrained(models.full)
        return saved(dict(model.named_parameters()), models.full, layout)

    return save


@pytest.fixture
def lora_checkpoint(models: Any, saved: Callable[..., Path]) -> Path:
    export, model = models.adapter("plain", **ADAPTERS["plain"])
    return saved(trained(model), export)


def assert_same_weights(got: TunedWeights, expected: TunedWeights) -> None:
    for projection in expected.base.names:
        one, other = got.pair(projection), expected.pair(projection)
        assert type(one.update) is type(other.update)
        assert torch.equal(one.update.dense(), other.update.dense())
        assert torch.equal(one.tuned, other.tuned)


# rows of one token go through matrix-vector products, which round by the alignment of the weights in memory
ROWS = ((9,), (20,), (31,), (42,), (3, 1, 4, 1, 5))


def states(base: Path, tuned: Path) -> torch.Tensor:
    """The hidden states of all layers, (layers, tokens, width)."""
    model = models_of.load_tuned(base, tuned)
    with torch.no_grad():
        found = [model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ROWS]
    return torch.cat([torch.cat(layers) for layers in found], dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_gives_the_weights_and_states_of_its_export(models: Any, full: Any, layout: str) -> None:
    checkpoint = full(layout)
    assert not is_adapter(checkpoint)
    assert_same_weights(open_weights(models.base, checkpoint), open_weights(models.base, models.full))
    tensors = model_tensors(checkpoint)
    parameters = LlamaForCausalLM.from_pretrained(models.full).named_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    assert {name: tensors.shape(name) for name in tensors.names} == shapes
    assert models_of.load_tuned(models.base, checkpoint).name_or_path == str(checkpoint)
    assert torch.equal(states(models.base, checkpoint), states(models.base, models.full))


@pytest.mark.parametrize("layout", ["stage 0", "aligned", "stage 3"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_lora_gives_updates_and_states_of_its_export(models: Any, saved: Any, name: str, layout: str) -> None:
    export, model = models.adapter(name, **ADAPTERS[name])
    checkpoint = saved(trained(model), export, layout)
    assert is_adapter(checkpoint)
    got, expected = open_weights(models.base, checkpoint), open_weights(models.base, export)
    assert_same_weights(got, expected)
    merged, whole = dict(got.merged()), dict(expected.merged())
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[key], whole[key]) for key in whole)
    assert torch.equal(states(models.base, checkpoint), states(models.base, export))


def test_the_start_of_pissa_is_in_the_runs_settings(models: Any, saved: Any) -> None:
    settings: dict[str, Any] = {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    export, model = models.adapter("pissa", **settings)
    checkpoint = saved(trained(model), export)
    with pytest.raises(UserError, match=r"step-000004: .* there is none in .*run/model/initial_adapter"):
        open_weights(models.base, checkpoint)
    start = RunLayout(checkpoint.parent.parent).model / "initial_adapter"
    shutil.copytree(export, start)
    update = open_weights(models.base, checkpoint).pair(QUERY).update
    assert update.shape == (32, 32)
    assert update.dense().abs().max() < 1e-12  # it has not moved from there


def test_weights_that_were_frozen_are_read_too(models: Any, saved: Any, zero: ModuleType) -> None:
    model = LlamaForCausalLM.from_pretrained(models.full)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    frozen = {name: tensors.pop(name) for name in list(tensors) if "mlp" in name}
    checkpoint = saved(tensors, models.full)
    for path in checkpoint.iterdir():
        path.unlink()
    zero.record_of(STEP).write(zero.save_stage_3(checkpoint, [tensors], 2, frozen=frozen))
    assert_same_weights(open_weights(models.base, checkpoint), open_weights(models.base, models.full))


def test_a_classifier_is_read_by_its_backbone(models: Any, saved: Any, tmp_path: Path) -> None:
    model = LlamaForSequenceClassification.from_pretrained(models.full, num_labels=3)
    model.save_pretrained(tmp_path / "export")
    checkpoint = saved(dict(model.named_parameters()), tmp_path / "export")
    backbone = models_of.load_tuned(models.base, checkpoint)
    assert all(torch.equal(p, model.model.get_parameter(name)) for name, p in backbone.named_parameters())


def subject(base: Path, tuned: Path) -> Subject:
    return Subject("run", "full", 0, ("topic",), 1, STEP, base=base, tuned=tuned)


def test_a_table_depends_on_the_runs_settings(models: Any, lora_checkpoint: Path, tmp_path: Path) -> None:
    params = Params(cache=tmp_path / "cache", workers=1)

    def norms() -> list[float]:
        one = [subject(models.base, lora_checkpoint)]
        path = run_analyses(["spectra"], one, tmp_path / "tables", params, lambda *_: None)[0]
        return pd.read_parquet(path)["update_norm"].tolist()

    before = norms()
    settings = RunLayout(tmp_path / "run").model / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "lora_alpha": 16}))
    assert norms() == pytest.approx([2 * norm for norm in before])


def test_the_fingerprint_follows_the_files(full: Any) -> None:
    tensors = model_tensors(checkpoint := full())
    before = tensors.fingerprint()
    assert tensors.fingerprint() == before
    os.utime(checkpoint / "mp_rank_00_model_states.pt", ns=(1, 1))
    assert tensors.fingerprint() != before


def outside(checkpoint: Path) -> None:
    shutil.rmtree(RunLayout(checkpoint.parent.parent).model)


def unrecorded(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").unlink()


def truncated(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*optim_states.pt"))[1]
    os.truncate(shard, shard.stat().st_size - 1)


def absent(checkpoint: Path) -> None:
    sorted(checkpoint.glob("*optim_states.pt"))[1].unlink()


def called_an_adapter(checkpoint: Path) -> None:
    model = RunLayout(checkpoint.parent.parent).model
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (outside, UserError, r"step-000004: what it is .*/run/model has no config.json .*beside RUN/model"),
        (unrecorded, UserError, "step-000004: not a complete checkpoint .*use another step"),
        (truncated, IntegrityError, "zero_pp_rank_1_mp_rank_00_optim_states.pt: .*truncated"),
        (absent, IntegrityError, "zero_pp_rank_1_mp_rank_00_optim_states.pt: missing"),
        (called_an_adapter, UserError, "holds no LoRA adapter"),
    ],
)
def test_checkpoints_that_cannot_be_read_are_refused(
    models: Any, full: Any, damage: Callable[[Path], None], kind: type[UserError], message: str
) -> None:
    checkpoint = full()
    damage(checkpoint)
    for read in (open_weights, models_of.load_tuned):
        with pytest.raises(kind, match=message):
            read(models.base, checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("layout", ["stage 2", "stage 3"])
def test_values_that_are_not_finite_are_named(models: Any, saved: Any, value: float, layout: str) -> None:
    model = LlamaForCausalLM.from_pretrained(models.full)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[-1, -1] = value
    checkpoint = saved(dict(model.named_parameters()), models.full, layout)
    for read in (lambda *folders: open_weights(*folders).pair(QUERY), models_of.load_tuned):
        with pytest.raises(IntegrityError, match=r"step-000004: model.layers.0.*q_proj.weight holds NaN"):
            read(models.base, checkpoint)


def test_a_shard_that_is_cut_while_it_is_read_is_named(models: Any, full: Any) -> None:
    checkpoint = full("stage 3")
    weights = open_weights(models.base, checkpoint)
    for shard in checkpoint.glob("*optim_states.pt"):
        os.truncate(shard, 4096)
    with pytest.raises(IntegrityError, match=r"step-000004: model.layers.0.*q_proj.weight cannot be read"):
        weights.pair(QUERY)


def test_a_checkpoint_of_another_model_is_refused(models: Any, one_matrix: Any, full: Any) -> None:
    base = one_matrix("base", torch.zeros(32, 31).numpy())
    with pytest.raises(UserError, match="not tuned from"):
        open_weights(base, full())


def test_the_run_is_found_from_within(models: Any, full: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(full())
    assert open_weights(models.base, Path()).pair(QUERY).update.dense().any()
