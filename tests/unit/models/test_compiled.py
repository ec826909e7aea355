"""Compiled blocks give what the blocks give, whatever the rows' lengths, by code that is made once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from families import LLAMA
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankdrift.errors import UserError
from rankdrift.methods.lora import Settings, prepare
from rankdrift.models import compiled
from rankdrift.models.compiled import compile_blocks, require_compiler
from rankdrift.models.packing import pack_rows, packed_inputs

LENGTHS = ([5, 9, 3, 4, 2, 6], [1, 14], [7, 7, 7, 7], [30])


def model_of(adapted: bool) -> Any:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(hf.LlamaConfig(**LLAMA))
    model.config.use_cache = False
    pack_rows(model)
    if not adapted:
        return model
    wrapped = prepare(model, Settings(rank=4, targets="both"), None)
    for name, param in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.1)
    return wrapped


def passed(model: Any, lengths: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.from_numpy(np.random.default_rng(sum(lengths)).integers(3, 200, (1, sum(lengths))))
    model.zero_grad()
    loss = model(input_ids=ids, **packed_inputs(lengths)).logits.square().sum()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True])
def test_losses_and_gradients_are_those_of_the_blocks(adapted: bool) -> None:
    expected = [passed(model_of(adapted), lengths) for lengths in LENGTHS]
    model, made = model_of(adapted), []
    compile_blocks(model)
    for lengths, (loss, gradients) in zip(LENGTHS, expected, strict=True):
        found, own = passed(model, lengths)
        made.append(counters["stats"]["unique_graphs"])
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
        assert own.keys() == gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5 * largest)
    assert made[0] > 0
    assert made == made[:1] * len(LENGTHS), "code was made for one length alone"


def test_without_a_compiler_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any) -> Any:
        raise RuntimeError("Failed to find C++ compiler.\nand how to install one")

    monkeypatch.setattr(compiled.torch, "compile", fails)
    with pytest.raises(UserError, match=r"cannot compile here \(Failed to find C\+\+ compiler\.\); install"):
        require_compiler()


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no blocks"):
        compile_blocks(torch.nn.Linear(2, 2))
