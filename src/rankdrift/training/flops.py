"""Floating-point operations of a training step, by the shapes of a model and the lengths of its rows.

Counted are products of matrices, two operations an element: an output once, the gradient of an input once
wherever weights lie below, the gradient of a weight once where it trains. So whole weights take 6 operations
an element and token, frozen ones 4 (of the first block's that is slightly too many). Attention's two products
take 4 s^2 w in the forward pass of a row of s tokens and twice that in the backward pass, w its heads' width
together; a causal model needs the half of each. The output's matrix counts at predicted tokens alone.
Recomputed activations are not counted, nor is what is no product.

The formulas are those of Kaplan et al. (2020), appendix B, and Narayanan et al. (2021), section 5.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedConfig

from rankdrift.models.direction import is_bidirectional

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelFlops:
    """What a model multiplies."""

    body: float
    """Elements of matrices that every token is multiplied by; of experts those that a token is sent to."""
    trained_body: float
    """Those of them that train."""
    head: float
    """Elements of the output's matrix, of a language model."""
    trained_head: float
    """Those of them that train."""
    widths: tuple[tuple[int, int | None], ...]
    """Of every layer the width of its heads together, and its sliding window, tokens."""
    causal: bool

    def of_rows(self, lengths: np.ndarray, targets: int) -> float:
        """Return the operations of a forward and a backward pass over rows.

        Parameters
        ----------
        lengths
            Tokens of each row, shape (rows,).
        targets
            Tokens that carry loss, over all rows.

        """
        tokens = float(lengths.sum())
        products = tokens * _both_passes(self.body, self.trained_body)
        products += targets * _both_passes(self.head, self.trained_head)
        attention = sum(12.0 * width * self._pairs(lengths, window) for width, window in self.widths)
        return products + attention

    def _pairs(self, lengths: np.ndarray, window: int | None) -> float:
        """Return the pairs of tokens that see each other, over all rows."""
        lengths = lengths.astype(np.float64)
        reach = np.minimum(lengths, math.inf if window is None else window)
        if not self.causal:
            return float((lengths * reach).sum())
        return float((lengths * reach - reach**2 / 2).sum())


def model_flops(model: nn.Module) -> ModelFlops:
    """Return what a model multiplies, be it wrapped by an adapter or divided between ranks."""
    config: Any = model.config
    text = config.get_text_config()
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    heads = {id(param) for param in output.parameters()} if output is not None else set()
    matrices = {id(param): param for module in model.modules() for param in _matrices(module)}
    counts = {"body": 0.0, "trained_body": 0.0, "head": 0.0, "trained_head": 0.0}
    for name, param in matrices.items():
        part = "head" if name in heads else "body"
        shape = tuple(getattr(param, "ds_shape", param.shape))
        used = _share_of_experts(text) if len(shape) == 3 else 1.0
        counts[part] += used * math.prod(shape)
        counts[f"trained_{part}"] += used * math.prod(shape) * param.requires_grad
    return ModelFlops(**counts, widths=_widths(text), causal=not is_bidirectional(config))


def _both_passes(multiplied: float, trained: float) -> float:
    return 4.0 * multiplied + 2.0 * trained


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module itself that multiply tokens; experts' have three dimensions."""
    if isinstance(module, nn.Embedding):
        return []  # looked up
    own = module.parameters(recurse=False)
    return [param for param in own if len(getattr(param, "ds_shape", param.shape)) in (2, 3)]


def _share_of_experts(config: PreTrainedConfig) -> float:
    """Return which part of the experts a token is sent to; 1 where the configuration does not say."""
    count = next((getattr(config, name) for name in EXPERTS if getattr(config, name, None)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / count if chosen and count else 1.0


def _widths(config: Any) -> tuple[tuple[int, int | None], ...]:
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return ()
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    kinds = list(kinds) * (config.num_hidden_layers // len(kinds))
    return tuple((width, window if kind == "sliding_attention" else None) for kind in kinds)
