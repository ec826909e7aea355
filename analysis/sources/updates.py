"""Updates of weights in their natural forms: a difference of two matrices, or a product of two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankdrift.export.adapter_update import LowRankUpdate


@dataclass(frozen=True)
class DenseUpdate:
    """dW = W - W0 of full fine-tuning, and of adapters that scale the whole weight (DoRA)."""

    values: Tensor
    """(rows, columns), float64, in which the difference of float32 weights is exact."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of dW."""
        return self.values.shape[0], self.values.shape[1]

    def dense(self) -> Tensor:
        """Return dW (rows, columns) in float64."""
        return self.values


Update = DenseUpdate | LowRankUpdate


def untouched(rows: int, columns: int) -> LowRankUpdate:
    """Return the zero update, as factors of rank 0."""
    return LowRankUpdate(left=torch.zeros(rows, 0), right=torch.zeros(0, columns), scale=0.0)


def touched(update: Update) -> tuple[Tensor, Tensor]:
    """Return which rows and which columns of dW are not all zero, bool (rows,) and (columns,).

    Rows of tokens that no training row holds never train: noise that is spread over all rows is no yardstick
    for what happened in some of them.
    """
    if isinstance(update, DenseUpdate):
        moved = update.values != 0
        return moved.any(dim=1), moved.any(dim=0)
    if update.scale == 0:
        return torch.zeros(update.shape[0], dtype=torch.bool), torch.zeros(update.shape[1], dtype=torch.bool)
    return (update.left != 0).any(dim=1), (update.right != 0).any(dim=0)
