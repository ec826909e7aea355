"""What every method must keep: it starts as the base, frozen stays frozen, plain libraries reload it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.methods import Method
from rankdrift.models.base import load_model
from rankdrift.models.exports import load_export
from rankdrift.models.targets import target_modules
from rankdrift.spec import ModelSpec
from rankdrift.spec.sections import method_section

IDS = torch.tensor([[5, 9, 30, 31, 7]])


NEEDED: dict[str, dict[str, object]] = {"bitfit": {"norms": True}}
"""Settings without which a method has nothing to train in the tiny model."""


def prepared(name: str, tiny: Path, **settings: object) -> tuple[Method, PreTrainedModel]:
    method: Method = registry.load("method", name)
    spec = method_section(name)(**{**NEEDED.get(name, {}), **settings})
    return method, method.prepare(load_model(tiny, ModelSpec()), spec, tiny)


@pytest.mark.parametrize("name", registry.names("method"))
def test_step_0_is_the_base(name: str, tiny: Path) -> None:
    _, model = prepared(name, tiny)
    with torch.no_grad():
        expected = load_model(tiny, ModelSpec()).eval()(IDS).logits
        assert torch.equal(model.eval()(IDS).logits, expected)


@pytest.mark.parametrize("name", registry.names("method"))
def test_what_is_frozen_gets_no_gradient_and_something_trains(name: str, tiny: Path) -> None:
    _, model = prepared(name, tiny)
    model(input_ids=IDS, labels=IDS).loss.backward()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("name", registry.names("method"))
def test_an_export_reloads_to_the_same_logits(name: str, tiny: Path, tmp_path: Path) -> None:
    method, model = prepared(name, tiny)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.02 * torch.randn(param.shape, generator=torch.Generator().manual_seed(1)))
        expected = model.eval()(IDS).logits
        model.save_pretrained(tmp_path)
        method.save_config(model, tmp_path)
        found = load_export(tmp_path, tiny, ModelSpec())(IDS).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", registry.names("method"))
@pytest.mark.parametrize(
    ("head", "architecture"), [("lm", "LlamaForCausalLM"), ("classifier", "LlamaForSequenceClassification")]
)
def test_the_config_says_which_model_was_trained(
    name: str, head: Literal["lm", "classifier"], architecture: str, tiny: Path, tmp_path: Path
) -> None:
    method: Method = registry.load("method", name)
    model = load_model(tiny, ModelSpec(head=head), 4)
    settings = method_section(name)(**NEEDED.get(name, {}))
    method.save_config(method.prepare(model, settings, tiny), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.architectures == [architecture]
    assert head == "lm" or config.num_labels == 4
    assert (tmp_path / "adapter_config.json").exists() == method.exclude_frozen


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("qv", {"q_proj", "v_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("both", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (("layers.1.mlp.up_proj",), {"layers.1.mlp.up_proj"}),
    ],
)
def test_target_groups(tiny: Path, targets: str | tuple[str, ...], expected: set[str]) -> None:
    assert set(target_modules(load_model(tiny, ModelSpec()), targets)) == expected


def test_all_adapts_tied_embeddings_once(tiny: Path) -> None:
    model = load_model(tiny, ModelSpec())
    assert "lm_head" not in target_modules(model, "all")
    model.config.tie_word_embeddings = False
    assert {"lm_head", "embed_tokens"} <= set(target_modules(model, "all"))


def test_targets_that_match_nothing_are_refused(tiny: Path) -> None:
    model = load_model(tiny, ModelSpec())
    message = r"'q_prj' matches no module of LlamaForCausalLM: did you mean 'q_proj'"
    with pytest.raises(UserError, match=message):
        target_modules(model, ["q_prj"])
    with pytest.raises(UserError, match="empty list"):
        target_modules(model, [])
    with pytest.raises(UserError, match=r"targets='mlp': down_proj, up_proj not found in block 0 of Llama"):
        target_modules(_without_mlp(model), "mlp")


def _without_mlp(model: PreTrainedModel) -> PreTrainedModel:
    for block in model.model.layers:
        block.mlp = torch.nn.Identity()
    return model


def test_scaling_is_alpha_over_r(tiny: Path) -> None:
    _, model = prepared("lora", tiny, rank=4, alpha=12.0, dropout=0.25)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.25
    assert layer.lora_A["default"].weight.shape == (4, 64)
