"""Recomputed activations: the same losses and gradients, by the operations that are computed again."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
import transformers as hf
from families import LLAMA
from operations import Operations
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankdrift.models.packing import pack_rows, packed_inputs
from rankdrift.models.recomputed import recompute_activations

LAYERS, ROWS = 2, [5, 3]
PRODUCTS = 6 * LAYERS  # a block has seven; of the last one nobody needs what it gave


def passed(which: Any) -> tuple[dict[str, torch.Tensor], collections.Counter[str]]:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(hf.LlamaConfig(**LLAMA)).train()
    model.config.use_cache = False
    pack_rows(model)
    if which:
        recompute_activations(model, selectively=which == "selective")
    ids = torch.randint(3, 200, (1, sum(ROWS)), generator=torch.Generator().manual_seed(0))
    with Operations() as operations:
        model(input_ids=ids, **packed_inputs(ROWS)).logits.square().sum().backward()
    return {name: param.grad for name, param in model.named_parameters()}, operations.calls


@pytest.mark.parametrize(("which", "products"), [("all", PRODUCTS), ("selective", 0)])
def test_what_is_computed_again(which: Any, products: int) -> None:
    expected, once = passed(None)
    gradients, again = passed(which)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=0)
    assert again["mm"] - once["mm"] == products
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert once[attention] == LAYERS * len(ROWS)
    assert again[attention] - once[attention] == (LAYERS * len(ROWS) if products else 0)
    assert again["silu"] == 2 * once["silu"] == 2 * LAYERS
