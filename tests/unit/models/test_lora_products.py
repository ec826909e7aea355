"""Joined products give what PEFT's layers give: outputs, gradients, adapters switched off; they are fewer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from families import DECODERS, LLAMA
from operations import Operations
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankdrift.methods.lora import Settings, prepare
from rankdrift.models.lora_products import join_products

LAYERS = 2
CASES: dict[str, Any] = {**DECODERS, "bias": lambda: hf.LlamaConfig(**LLAMA, attention_bias=True)}
WHOLE = {"llama": 7 * LAYERS, "bias": 7 * LAYERS, "gpt2": 0}


def adapted(family: str, dropout: float = 0.0, checkpointing: bool = False) -> Any:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CASES[family]()).double()
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    wrapped = prepare(model, Settings(rank=3, targets="both", dropout=dropout), None)
    for name, param in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.1)
    return wrapped.train(checkpointing)  # some families drop out by default


def passed(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    logits = model(input_ids=ids).logits
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(model: Any, expected: Any) -> None:
    (logits, gradients), (own, of_own) = passed(model), passed(expected)
    torch.testing.assert_close(logits, own, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == of_own.keys()
    largest = max(float(gradient.abs().max()) for gradient in of_own.values())
    for name, gradient in of_own.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-12 * largest)


@pytest.mark.parametrize(("family", "checkpointing"), [*((name, False) for name in CASES), ("bias", True)])
def test_outputs_and_gradients_are_pefts(family: str, checkpointing: bool) -> None:
    model = adapted(family, checkpointing=checkpointing)
    joined = join_products(model)
    assert joined == WHOLE.get(family, joined)
    assert_alike(model, adapted(family, checkpointing=checkpointing))


def test_one_product_for_all_layers_of_an_input() -> None:
    """Of a block's seven layers q, k and v share an A, and gate and up: four products by an A, not seven."""
    counts = []
    for join in (False, True):
        model = adapted("llama")
        if join:
            join_products(model)
        with Operations() as products, torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        counts.append(sum(products.calls[name] for name in ("mm", "addmm", "addmm_")))
    assert counts[0] - counts[1] == 3 * LAYERS
    assert products.calls["addmm_"] == 7 * LAYERS


def test_switched_off_merged_and_saved_adapters() -> None:
    model, own = adapted("llama"), adapted("llama")
    names = list(model.state_dict())
    join_products(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with model.disable_adapter(), own.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, own(input_ids=ids).logits)
        on = model(input_ids=ids).logits
        torch.testing.assert_close(on, own(input_ids=ids).logits)
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model.merge_and_unload()(input_ids=ids).logits, on, rtol=1e-4, atol=1e-5)


def test_layers_with_dropout_stay_as_they_are() -> None:
    assert join_products(adapted("llama", dropout=0.1)) == 0


def test_layers_that_turn_out_to_share_nothing_compute_alone() -> None:
    model, own = adapted("llama"), adapted("llama")
    join_products(model)
    one, other = torch.randn(2, 1, 3, 32, dtype=torch.float64)
    for layers in (model, own):
        layers.attention = layers.base_model.model.model.layers[0].self_attn
    for given in (one, other, one):  # keys and values of another input, or never asked for
        expected = own.attention.q_proj(given), own.attention.k_proj(other)
        found = model.attention.q_proj(given), model.attention.k_proj(other)
        torch.testing.assert_close(found, expected)
