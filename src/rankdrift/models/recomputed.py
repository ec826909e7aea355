"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.attention import varlen  # noqa: F401 - registers its operator
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

aten = torch.ops.aten
PRODUCTS = [
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
    *(
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
    ),
]
"""Products of matrices and attention: what takes a block's time; the rest takes its memory."""


def recompute_activations(model: PreTrainedModel, selectively: bool = False) -> None:
    """Keep the inputs of a model's blocks alone: least memory, for a second forward pass.

    Selectively, what products of matrices and attention gave is kept as well: norms, activation functions and
    the like are computed again, which is quick, and nothing else.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if selectively:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, PRODUCTS)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.enable_input_require_grads()
