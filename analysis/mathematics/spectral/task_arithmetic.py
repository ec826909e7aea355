"""Task vectors (arXiv 2212.04089): inner products, norms and sign conflicts of two updates of one matrix.

Pure functions of tensors. Updates in factors are never formed for an inner product:
<s1 B1 A1, s2 B2 A2>_F = s1 s2 tr((B1^T B2)(A2 A1^T)) costs O((m + n) r1 r2) and is the same for (c B, A / c).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankdrift.analysis.mathematics.spectral import linalg

LARGE = 0.2
"""Share of a matrix's entries, by magnitude, whose signs are compared (the share TIES keeps, 2306.01708)."""


@dataclass(frozen=True)
class PairSums:
    """What two updates give together; sums over matrices are those of their fields."""

    inner: float
    """<X, Y>_F."""
    square: float
    """||X||_F^2."""
    other_square: float
    """||Y||_F^2."""
    null_variance: float
    """||X||_F^2 ||Y||_F^2 / (m n): the variance of <X, Y>_F if one of the two were turned at random.

    m and n are the rows and columns that either has.
    """
    shared: int
    """Entries that are large in both."""
    conflicts: int
    """Of these, the ones whose signs differ."""

    @property
    def cosine(self) -> float:
        """<X, Y> / (||X|| ||Y||); NaN where one of the two is zero."""
        norms = math.sqrt(self.square) * math.sqrt(self.other_square)
        return self.inner / norms if norms > 0 else math.nan

    @property
    def cosine_null(self) -> float:
        """Standard deviation of the cosine of unrelated directions; NaN where an update is zero.

        For U X V with U and V uniform over rotations, E<U X V, Y>^2 = ||X||_F^2 ||Y||_F^2 / (m n) whatever
        the spectra and ranks, so it is 1 / sqrt(m n) for one matrix, of LoRA and of full updates alike (of
        rank 1 the distribution only has heavier tails). Two adapters that start from one A are related: with
        A's rows orthonormal and kept, it is 1 / sqrt(m r).
        """
        norms = math.sqrt(self.square) * math.sqrt(self.other_square)
        return math.sqrt(self.null_variance) / norms if norms > 0 else math.nan

    @property
    def sign_conflict(self) -> float:
        """Share of the shared large entries whose signs differ, .5 for unrelated updates; NaN without any."""
        return self.conflicts / self.shared if self.shared else math.nan


def dense_inner(x: Tensor, y: Tensor) -> float:
    """Return <X, Y>_F of two matrices (m, n), accumulated in float64."""
    return float(torch.dot(x.double().reshape(-1), y.double().reshape(-1)))


def mixed_inner(x: Tensor, left: Tensor, right: Tensor, scale: float) -> float:
    """Return <X, s B A>_F = s tr(B^T X A^T) of X (m, n), B (m, r), A (r, n), without forming B A."""
    return scale * dense_inner(left.double().T @ x.double(), right)


def factor_inner(
    first: tuple[Tensor, Tensor, float],  # B1 (m, r1), A1 (r1, n), s1
    second: tuple[Tensor, Tensor, float],  # B2 (m, r2), A2 (r2, n), s2
) -> float:
    """Return <s1 B1 A1, s2 B2 A2>_F = s1 s2 tr((B1^T B2)(A2 A1^T)), in float64."""
    left = first[0].double().T @ second[0].double()  # (r1, r2)
    right = first[1].double() @ second[1].double().T  # (r1, r2)
    return first[2] * second[2] * dense_inner(left, right)


def factor_square(left: Tensor, right: Tensor, scale: float) -> float:
    """Return ||s B A||_F^2 of B (m, r), A (r, n), from the singular values.

    The inner product with itself has an error of eps ||B||^2 ||A||^2, which is all there is where factors
    nearly cancel, as those of an adapter beside its start at first.
    """
    sigma = linalg.product_singular_values(left.numpy(force=True), right.numpy(force=True))
    return scale**2 * float(np.square(sigma).sum())


def large_signs(x: Tensor, share: float = LARGE) -> Tensor:
    """Return the signs (int8) of a matrix's largest entries by magnitude, 0 elsewhere, in its shape.

    Kept is everything at least as large as the k-th largest magnitude, k = round(share * entries): ties are
    kept, zeros never.
    """
    sizes = np.abs(x.numpy(force=True))
    drop = sizes.size - max(1, round(share * sizes.size))
    least = np.partition(sizes, drop, axis=None)[drop]  # five times as fast as torch.kthvalue
    return torch.sign(x).to(torch.int8) * torch.from_numpy(sizes >= least).to(x.device)


def sign_conflicts(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Return (entries large in both, those whose signs differ) of two results of :func:`large_signs`."""
    products = first * second
    return int(torch.count_nonzero(products)), int((products < 0).sum())
