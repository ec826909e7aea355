"""Rows laid end to end in one sequence, each of which attends to itself alone.

Padding makes a batch as long as its longest row times its rows; a packed one is as long as its rows together,
and every projection of the model is one matrix product over real tokens. What tells rows apart is handed to
the attention of each layer through the model's forward: positions count from 0 in every row, and
``cu_seq_lens_q`` are the places where rows begin (the names that transformers uses for flash attention).

The attention has a name of its own in transformers' ``AttentionInterface``. Asked without rows it is SDPA, so
that a model in training can be evaluated, and can generate, as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rankdrift_packed"
FAMILIES = frozenset({
    "cohere", "gemma", "gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "llama", "mistral",
    "mixtral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
})  # fmt: skip
"""``model_type`` of the families whose packed rows are tested to be their rows alone."""


def why_not(config: PreTrainedConfig, attention: str, head: str) -> str | None:
    """Return why rows of a model cannot be packed, None where they can.

    Parameters
    ----------
    config
        The model's.
    attention
        ``model.attention`` of the recipe.
    head
        ``lm`` or ``classifier``.

    """
    if head != "lm":
        return "model.head=classifier reads one position a row"
    if attention == "eager":
        return "model.attention=eager takes a mask alone"
    if config.model_type not in FAMILIES:
        return f"models of type {config.model_type!r} are not known to keep packed rows apart"
    return None


def pack_rows(model: PreTrainedModel) -> None:
    """Let a model, which may be wrapped by an adapter, take packed rows from now on."""
    model.config._attn_implementation = NAME


def takes_packed_rows(model: nn.Module) -> bool:
    """Return whether :func:`pack_rows` was called on a model, or on what it wraps."""
    return getattr(model.config, "_attn_implementation", None) == NAME


def packed_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    """Return what a model's forward needs to tell rows apart.

    Parameters
    ----------
    lengths
        Tokens of each row.

    Returns
    -------
    dict
        ``position_ids``, int64, shape (1, tokens); ``cu_seq_lens_q``, int32, shape (rows + 1,): where rows
        begin, and the end; ``max_length_q``, the tokens of the longest row; an ``attention_mask`` that no
        attention reads, of the four dimensions of one that is ready, so that none is made of tokens x tokens.

    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return {
        "position_ids": torch.from_numpy(positions[None]),
        "cu_seq_lens_q": torch.from_numpy(starts.astype(np.int32)),
        "max_length_q": max(lengths),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    }


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within rows: the function that transformers' layers call.

    Parameters
    ----------
    module
        The layer.
    query, key, value
        Shape (1, heads, tokens, width); there may be fewer heads of keys and values.
    attention_mask
        Read where ``cu_seq_lens_q`` is None.
    cu_seq_lens_q, max_length_q
        See :func:`packed_inputs`.
    options
        ``scaling``, ``dropout``, ``sliding_window`` and what else SDPA takes.

    Returns
    -------
    tuple
        Shape (1, tokens, heads, width), and None in place of the weights.

    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert max_length_q is not None
    scaling, window = options.get("scaling"), options.get("sliding_window")
    dropout = options.get("dropout", 0.0)
    if query.is_cuda and not dropout and query.dtype in (torch.bfloat16, torch.float16):
        return _of_rows_at_once(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    return _row_by_row(query, key, value, cu_seq_lens_q, scaling, window, dropout), None


@torch.compiler.disable
def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    scaling: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Attend within one row after another, shape (1, tokens, heads, width).

    Not compiled: the code would be another one for other lengths. A GPU that does this, in fp32, is waited
    for in every layer.
    """
    lengths = starts.diff().tolist()
    rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    attended = [_of_row(q, k, v, scaling, window, dropout) for q, k, v in rows]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _of_row(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, dropout: float
) -> Tensor:
    """Attend within one row, shape (1, heads, length, width)."""
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
        mask = ones.tril() & ones.triu(1 - window)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and length > 1,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _of_rows_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend within all rows by one kernel of flash attention, shape (1, tokens, heads, width)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # older releases of torch take as many heads of keys as of queries alone
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    back = -1 if window is None else window - 1
    attended = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=(back, 0)
    )
    assert isinstance(attended, Tensor), "more is returned where more is asked for"
    return attended[None]


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
