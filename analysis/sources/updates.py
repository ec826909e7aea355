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
