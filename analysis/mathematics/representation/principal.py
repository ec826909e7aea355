"""Principal directions of a representation, and how far two sets of them span the same space. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOP_SHARE = 0.01
"""Share of the dimensions that ``without_top`` leaves out: those of largest variance in the base."""


@dataclass(frozen=True)
class Principal:
    """Principal directions of centred rows X (n, d), by falling variance."""

    squares: Tensor
    """Squared singular values of X, all that are not rounding: (rank,) fp64."""
    directions: Tensor
    """Right singular vectors of the leading ones, columns of (d, m) fp64, m <= rank."""

    @property
    def norm(self) -> float:
        """||X||_F."""
        return math.sqrt(float(self.squares.sum()))

    def leading(self, share: float) -> int:
        """Return how many leading directions hold this share of the variance; 0 for constant rows."""
        if len(self.squares) == 0:
            return 0
        held = self.squares.cumsum(dim=0) / self.squares.sum()
        return min(int((held < share).sum()) + 1, len(self.squares))

    def truncated(self, count: int) -> Principal:
        """Return it with the first ``count`` directions only (all variances are kept)."""
        return Principal(self.squares, self.directions[:, :count].contiguous())


def principal_directions(x: Tensor, products: Tensor | None = None) -> Principal:
    """Return the principal directions of centred rows x (n, d), fp64.

    They are eigenvectors of the smaller of XᵀX (``products``, where it is at hand) and XXᵀ. Values below
    eps max(n, d) times the largest are rounding and left out.
    """
    n, d = x.shape
    if n < d:
        products = x @ x.T
    elif products is None:
        products = x.T @ x
    squares, vectors = torch.linalg.eigh(products)
    squares, vectors = squares.flip(0), vectors.flip(1)
    kept = squares > squares[0] * max(n, d) * torch.finfo(x.dtype).eps
    squares, vectors = squares[kept], vectors[:, kept]
    return Principal(squares, vectors if n >= d else x.T @ vectors / squares.sqrt())


def subspace_overlap(x: Principal, y: Principal, count: int) -> float:
    """Return ||V_xᵀ V_y||_F² / k of the k leading directions of both, in [0, 1] (arXiv 2106.09685 §7.2).

    Random subspaces of d dimensions give k/d on average. NaN where one of them has fewer directions.
    """
    if min(x.directions.shape[1], y.directions.shape[1]) < count:
        return math.nan
    return float((x.directions[:, :count].T @ y.directions[:, :count]).square().sum()) / count


def columns_without_top(x: Tensor) -> Tensor:
    """Return the indices, rising, of the columns of x (n, d) but for the 1 % of largest variance.

    At least one column is left out: a single dimension of very large variance ("massive activation") hides
    what all others do from CKA.
    """
    variances = x.double().var(dim=0, correction=0)
    count = max(1, int(TOP_SHARE * len(variances)))
    return variances.argsort(descending=True, stable=True)[count:].sort().values
