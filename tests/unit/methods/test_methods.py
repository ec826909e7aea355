"""What every method must keep: it starts as the base, frozen stays frozen, plain libraries reload it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel

from rankdrift import registry
from rankdrift.errors import IntegrityError, UserError
from rankdrift.methods import Method
from rankdrift.models.base import load_model
from rankdrift.models.exports import load_export
from rankdrift.models.families import cell_of
from rankdrift.models.targets import target_modules
from rankdrift.spec import ModelSpec, parse_spec
from rankdrift.spec.sections import method_section

IDS = torch.tensor([[5, 9, 30, 31, 7]])


CHANGE_BASE = [name for name in registry.names("method") if registry.load("method", name).take_up]
"""Methods whose exports are made from the adapter they began with: ``tests/distributed/test_methods.py``."""
NEEDED: dict[str, dict[str, object]] = {"bitfit": {"norms": True}}
"""Settings without which a method has nothing to train in the tiny model."""


LONGER = torch.tensor([[5, 9, 30, 31, 7, 2, 17, 80, 81, 4], [101, 4, 66, 7, 8, 9, 3, 1, 1, 1]])
ROWS = {
    "input_ids": LONGER,
    "attention_mask": (LONGER != 1).long(),
    "labels": torch.where((LONGER != 1) & (torch.arange(10) > 2), LONGER, -100),
}
"""What a method that reads rows is given; 1 fills the second one up."""


def prepared(
    name: str, tiny: Path, head: Literal["lm", "classifier"] = "lm", **settings: object
) -> tuple[Method, PreTrainedModel]:
    method: Method = registry.load("method", name)
    spec = method_section(name)(**{**NEEDED.get(name, {}), **settings})
    rows = {key: value for key, value in ROWS.items() if key != "labels" or head == "lm"}
    given = (rows,) if method.reads(spec) else ()
    return method, method.prepare(load_model(tiny, ModelSpec(head=head), 4), spec, tiny, *given)


@pytest.mark.parametrize("name", registry.names("method"))
def test_step_0_is_the_base(name: str, tiny: Path) -> None:
    method, model = prepared(name, tiny)
    with torch.no_grad():
        expected = load_model(tiny, ModelSpec()).eval()(IDS).logits
        found = model.eval()(IDS).logits
    if method.take_up:  # base weights are what their adapters leave of them, up to rounding
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", registry.names("method"))
def test_what_is_frozen_gets_no_gradient_and_something_trains(name: str, tiny: Path) -> None:
    _, model = prepared(name, tiny)
    model(input_ids=IDS, labels=IDS).loss.backward()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in registry.names("method") if name not in CHANGE_BASE])
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
    if (name, head) == ("lora_ga", "classifier"):
        with pytest.raises(UserError, match="begins from the gradient of a language model"):
            prepared(name, tiny, head)
        return
    method, model = prepared(name, tiny, head)
    method.save_config(model, tmp_path)
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


def test_alpha_is_twice_the_rank_of_the_module_itself(tiny: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 4}, "alpha_pattern": {"v_proj": 24.0}}
    _, model = prepared("lora", tiny, rank=8, **patterns)
    layers = model.base_model.model.model.layers
    scaling = {
        name: layer.scaling["default"]
        for name, layer in (
            ("q", layers[0].self_attn.q_proj),
            ("v", layers[0].self_attn.v_proj),
            ("k", layers[0].self_attn.k_proj),
            ("up", layers[1].mlp.up_proj),
        )
    }
    assert scaling == {"q": 2.0, "v": 3.0, "k": 2.0, "up": 2.0}
    assert layers[1].mlp.up_proj.lora_A["default"].weight.shape[0] == 4
    _, fixed = prepared("lora", tiny, rank=8, alpha=8.0, rank_pattern={"q_proj": 2})
    assert fixed.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 4.0
    assert method_section("lora")(rank=8, rank_pattern={"q_proj": 32}).adapter_rank == 32


def test_layers_that_are_not_named_have_no_adapter(tiny: Path) -> None:
    method, model = prepared("lora", tiny, layers=(1, 2), targets="qv")
    assert method.adapted(model) == [
        f"model.layers.{layer}.self_attn.{name}" for layer in (1, 2) for name in ("q_proj", "v_proj")
    ]


@pytest.mark.parametrize(
    ("name", "settings", "trains"),
    [
        ("full", {"freeze": ("embeddings", "norms")}, {"attention", "mlp"}),
        ("full", {"freeze": ("norms",)}, {"attention", "mlp", "embed"}),
        ("bitfit", {"norms": True}, {"norm"}),
    ],
)
def test_kinds_that_train(tiny: Path, name: str, settings: dict, trains: set[str]) -> None:
    _, model = prepared(name, tiny, **settings)
    assert {cell_of(key).group for key, param in model.named_parameters() if param.requires_grad} == trains


def test_the_last_blocks_train_with_the_final_norm_and_not_with_a_tied_head(tiny: Path) -> None:
    _, model = prepared("last_layers", tiny, last=1)
    trained = {key for key, param in model.named_parameters() if param.requires_grad}
    assert {key for key in trained if ".layers." not in key} == {"model.norm.weight"}
    assert {key.split(".")[2] for key in trained if ".layers." in key} == {"2"}


@pytest.mark.parametrize("name", ["full", "last_layers", "bitfit"])
def test_a_new_head_trains_whatever_else_does(tiny: Path, name: str) -> None:
    settings = {"freeze": ("head", "embeddings")} if name == "full" else {}
    _, model = prepared(name, tiny, "classifier", **settings)
    assert model.score.weight.requires_grad


def test_b_of_lora_plus_learns_faster() -> None:
    method: Method = registry.load("method", "lora_plus")
    settings = method_section("lora_plus")(ratio=4.0)
    names = ("layers.0.q_proj.lora_A.default.weight", "layers.0.q_proj.lora_B.default.weight")
    assert [method.rate(name, settings) for name in names] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "lora",
            {"rank": 33},
            r"rank=33 is above the rank that 'model.layers.0.self_attn.k_proj' .* can have, 32",
        ),
        ("lora", {"layers": (1, 3)}, r"method.layers=\[1, 3\]: LlamaForCausalLM has blocks 0 to 2"),
        ("lora", {"rank_pattern": {"x_proj": 2}}, "'x_proj' is the end of no adapted module's name"),
        ("lora", {"trainable_token_indices": (2, 258)}, "there is no token 258; .* has tokens 0 to 257"),
        (
            "lora",
            {"trainable_token_indices": (2,), "targets": "all"},
            "trainable_token_indices: 'embed_tokens' is adapted or trains whole already",
        ),
        (
            "lora",
            {"trainable_token_indices": (2,), "modules_to_save": ("lm_head",)},
            "trainable_token_indices: 'lm_head' is adapted or trains whole already",
        ),
        ("bitfit", {"norms": False}, r"LlamaForCausalLM has no biases; .*method.norms=true"),
        ("last_layers", {"last": 4}, "method.last=4: LlamaForCausalLM has 3 blocks"),
    ],
)
def test_what_a_model_cannot_have_is_refused(tiny: Path, name: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(name, tiny, **settings)


def test_a_token_is_named_once() -> None:
    with pytest.raises(UserError, match=r"method.trainable_token_indices: .*token 7 is there 2 times"):
        parse_spec({"method": {"trainable_token_indices": [7, 3, 7]}})


def test_a_run_that_names_no_rate_has_its_methods() -> None:
    rates = {name: parse_spec({"method": {"name": name}}).training.learning_rate for name in ("full", "lora")}
    assert rates == {"full": 2e-5, "lora": 2e-4}
    given = parse_spec({"method": {"name": "full"}, "training": {"learning_rate": 3e-3}})
    assert given.training.learning_rate == 3e-3


@pytest.mark.parametrize("name", CHANGE_BASE)
def test_a_method_that_changes_the_base_begins_again_from_what_was_kept(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    method, model = prepared(name, tiny, rank=4)
    kept = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    method.save_config(model, tmp_path)
    torch.manual_seed(2)  # another draw of a decomposition at random
    settings = method_section(name)(rank=4)
    assert method.take_up is not None
    again = method.take_up(load_model(tiny, ModelSpec()), settings, tiny, tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert again.peft_config["default"].init_lora_weights == model.peft_config["default"].init_lora_weights
    save_file({f"{key}.x": value for key, value in kept.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match="is of another adapter"):
        method.take_up(load_model(tiny, ModelSpec()), settings, tiny, tmp_path)
