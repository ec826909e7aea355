"""Operations of a step against torch's own count of what was run, and the measure of the hardware."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from families import LLAMA, NAMES
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankdrift.methods.lora import Settings, prepare
from rankdrift.training import matmul_peak
from rankdrift.training.flops import ModelFlops, model_flops

LENGTH, TARGETS = 12, 5
MIXTRAL = {**LLAMA, "num_experts_per_tok": 2, "num_local_experts": 4}
FAMILIES: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**LLAMA),
    "untied": lambda: hf.LlamaConfig(**LLAMA | {"tie_word_embeddings": False}),
    "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=256),
    "wide heads": lambda: hf.Qwen3Config(**LLAMA, head_dim=16),
    "phi": lambda: hf.PhiConfig(**NAMES, intermediate_size=48),
    "experts": lambda: hf.MixtralConfig(**MIXTRAL),
}


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        FAMILIES[family](), attn_implementation="eager", experts_implementation="eager"
    )


def counted(model: Any) -> float:
    """What torch counts of a row of which some positions have logits; eager attention is not halved."""
    ids = torch.randint(3, 200, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=torch.arange(TARGETS)).logits.square().sum().backward()
    return float(counter.get_total_flops())


def by_formula(model: Any) -> float:
    whole = dataclasses.replace(model_flops(model), causal=False)
    return whole.of_rows(np.array([LENGTH]), TARGETS)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning(family: str) -> None:
    model = model_of(family)
    assert by_formula(model) == counted(model)


def test_frozen_weights_have_no_gradients() -> None:
    """But for the first block's inputs, which nothing that trains lies below."""
    model = prepare(model_of("untied"), Settings(rank=4, targets="both"), None)
    first = model.base_model.model.model.layers[0].self_attn
    into = [first.q_proj, first.k_proj, first.v_proj]
    own = sum(module.base_layer.weight.numel() + 4 * module.in_features for module in into)
    assert by_formula(model) - counted(model) == 2 * LENGTH * own


def test_a_row_sees_back_and_no_further_than_its_window() -> None:
    one_wide = ModelFlops(0, 0, 0, 0, ((1, None),), causal=True)
    assert one_wide.of_rows(np.array([10, 4]), 0) == 12 * (100 + 16) / 2
    windowed = dataclasses.replace(one_wide, widths=((1, 4), (1, None)))
    pairs = 4 * 4 / 2 + 6 * 4
    assert windowed.of_rows(np.array([10]), 0) == 12 * (pairs + 50)


def test_windows_are_those_of_each_layer() -> None:
    config = hf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=6, layer_types=None)
    found = model_flops(AutoModelForCausalLM.from_config(config))
    kinds = [6 if kind == "sliding_attention" else None for kind in config.layer_types]
    assert [window for _, window in found.widths] == kinds


def test_the_peak_is_the_median_products(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([4.0, 1.0, 2.0, 9.0, 1.5])
    monkeypatch.setattr(matmul_peak, "_seconds", lambda one, other: next(seconds))
    found = matmul_peak.matmul_flops_per_second(torch.device("cpu"), torch.float32)
    assert found == 2 * 512**3 / 2.0
