"""Liger's kernels: refused with the reason where they cannot run; where they can, they give what blocks give.

Triton's own interpreter (``TRITON_INTERPRET=1``) runs them on a CPU where it knows all they use.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import pytest
import torch
import transformers as hf
from families import LLAMA
from transformers.models.llama import modeling_llama

from rankdrift.errors import UserError
from rankdrift.methods.lora import Settings, prepare
from rankdrift.models import liger
from rankdrift.models.lora_products import join_products
from rankdrift.models.packing import pack_rows, packed_inputs
from rankdrift.models.recomputed import recompute_activations

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [5, 9, 3, 4]


def model_of(fused: bool, method: str, again: bool) -> Any:
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**LLAMA))
    model.config.use_cache = False
    if again:
        recompute_activations(model, selectively=True)
    pack_rows(model)
    if fused:
        liger.use_liger(model)
    if method == "lora":
        model = prepare(model, Settings(rank=4, targets="both"), None)
        for name, param in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(param, std=0.1)
        if not again:
            join_products(model)
    return model.to(DEVICE)


def passed(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 200, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, **packed_inputs(LENGTHS)}
    on_device = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
    loss = model(**on_device).logits.square().sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="this machine has no NVIDIA GPU")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_and_gradients_are_those_of_the_blocks(method: str, again: bool) -> None:
    pytest.importorskip("liger_kernel")
    torch.backends.cuda.matmul.allow_tf32 = False
    loss, gradients = passed(model_of(False, method, again))
    fused = model_of(True, method, again)
    assert any("Liger" in module._get_name() for module in fused.modules())
    found, own = passed(fused)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    assert own.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5 * largest)


def stand_in(monkeypatch: pytest.MonkeyPatch, apply: Any) -> None:
    """Put a module in the place of the package's that says which families it knows."""
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    patches: Any = sys.modules[names[-1]]
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    patches._apply_liger_kernel_to_instance = apply
    monkeypatch.setattr(liger.importlib.util, "find_spec", lambda name: name)


def test_other_models_of_the_family_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def apply(model: Any, **options: bool) -> None:
        given.update(options)
        modeling_llama.LlamaRMSNorm = torch.nn.Identity  # type: ignore[misc, assignment]

    norm = modeling_llama.LlamaRMSNorm
    stand_in(monkeypatch, apply)
    liger.use_liger(hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**LLAMA)))
    assert modeling_llama.LlamaRMSNorm is norm
    assert given == {"cross_entropy": False, "fused_linear_cross_entropy": False, "rope": False}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liger.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"liger-kernel is missing; pip install 'rankdrift\[liger\]'"):
        liger.require_liger(hf.LlamaConfig(**LLAMA))
    stand_in(monkeypatch, None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="for GPUs, and there is none here"):
        liger.require_liger(hf.LlamaConfig(**LLAMA))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="no kernels for models of type 'gpt2'"):
        liger.require_liger(hf.GPT2Config())
    liger.require_liger(hf.LlamaConfig(**LLAMA))
