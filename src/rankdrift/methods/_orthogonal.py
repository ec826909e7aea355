"""The penalty that keeps AdaLoRA's P and Q orthogonal, added to their gradients where they are made.

A layer reads its matrices through an identity whose backward pass adds the penalty's gradient, so that it is
with the loss's own wherever ZeRO keeps that. It is no part of the loss that is logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import Tensor, nn

ADAPTER = "default"


@dataclass
class Penalty:
    """The penalty of one model."""

    weight: float
    matrices: int = 0
    """How many it is the mean over."""
    share: float = 1.0
    """What one backward pass adds of a step's: one over their number."""

    @property
    def factor(self) -> float:
        """What one backward pass adds of a matrix's."""
        return self.weight * self.share / self.matrices


def keep_orthogonal(model: nn.Module, penalty: Penalty) -> None:
    """Let a model's backward passes add the penalty's gradient."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, AdaLoraLayer)]
    penalty.matrices = 2 * len(layers)
    for layer in layers:
        layer.forward = _Forward(layer, penalty)


@dataclass
class _Forward:
    """PEFT's forward of a layer, through the identities."""

    layer: Any
    penalty: Penalty

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        result: Tensor = layer.base_layer(x)
        if layer.disable_adapters or layer.merged:
            return result
        q = _Identity.apply(layer.lora_A[ADAPTER], self.penalty, False)
        p = _Identity.apply(layer.lora_B[ADAPTER], self.penalty, True)
        scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)
        read = layer.lora_dropout[ADAPTER](x.to(q.dtype))
        low = (read @ (q * layer.lora_E[ADAPTER]).T) @ p.T
        return result + (low * scale).to(result.dtype)


class _Identity(torch.autograd.Function):
    """A matrix as it is; its gradient has the penalty's added."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, penalty: Penalty, by_columns: bool) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.penalty, ctx.by_columns = penalty, by_columns
        return matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (matrix,) = ctx.saved_tensors
        rows = matrix.T if ctx.by_columns else matrix
        gradient = ctx.penalty.factor * penalty_gradient(rows.float())
        return upstream + (gradient.T if ctx.by_columns else gradient).to(upstream), None, None


def penalty_gradient(rows: Tensor) -> Tensor:
    """Return the gradient of ||R R^T - I||_F by R (rank, width); zero where R R^T = I.

    >>> penalty_gradient(torch.tensor([[3.0, 0.0]]))
    tensor([[6., 0.]])
    """
    apart = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return 2 * (apart @ rows) / torch.linalg.matrix_norm(apart).clamp(min=1e-30)
