"""How alike two representations of the same inputs are: linear CKA, cosines, relative distance. No I/O.

CKA is computed from sums over rows (:class:`CrossMoments`), so one pass is enough, memory does not grow
with the rows, sums of shards add up to the sum of all, and leaving a shard out for the jackknife is a
subtraction. Rows are the inputs, columns the features; everything is fp64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankdrift.errors import UserError

MIN_ROWS = 4
"""HSIC1 divides by n (n - 3)."""
SHARDS = 16
"""Shards of the jackknife, or one a row where there are fewer rows."""


@dataclass(frozen=True)
class CrossMoments:
    """Sums over the rows of X (n, d_x) and Y (n, d_y) from which both HSIC estimators follow exactly.

    Moments of disjoint sets of rows add and subtract. HSIC does not change when a fixed vector is
    subtracted from all rows, and rounding is least when that vector is near the mean.
    """

    count: Tensor
    """n."""
    products: Tensor
    """Sum of x yᵀ, (d_x, d_y)."""
    sum_x: Tensor
    """Sum of x, (d_x,)."""
    sum_y: Tensor
    """Sum of y, (d_y,)."""
    squares_x: Tensor
    """Sum of |x|²."""
    squares_y: Tensor
    """Sum of |y|²."""
    squares_xy: Tensor
    """Sum of |x|² |y|²."""
    weighted_x: Tensor
    """Sum of x |y|², (d_x,)."""
    weighted_y: Tensor
    """Sum of y |x|², (d_y,)."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> CrossMoments:
        """Return the moments of paired rows x (n, d_x) and y (n, d_y); they are widened to fp64."""
        x, y = x.double(), y.double()
        norms_x, norms_y = x.square().sum(dim=1), y.square().sum(dim=1)
        return cls(
            count=torch.tensor(float(len(x)), dtype=torch.float64),
            products=x.T @ y,
            sum_x=x.sum(dim=0),
            sum_y=y.sum(dim=0),
            squares_x=norms_x.sum(),
            squares_y=norms_y.sum(),
            squares_xy=norms_x @ norms_y,
            weighted_x=x.T @ norms_y,
            weighted_y=y.T @ norms_x,
        )

    def __add__(self, other: CrossMoments) -> CrossMoments:
        """Return the moments of both sets of rows together."""
        return self._combined(other, operator.add)

    def __sub__(self, other: CrossMoments) -> CrossMoments:
        """Return the moments without the rows of ``other``, which must be among these."""
        return self._combined(other, operator.sub)

    def _combined(self, other: CrossMoments, combine: Callable[[Tensor, Tensor], Tensor]) -> CrossMoments:
        names = [field.name for field in dataclasses.fields(self)]
        return CrossMoments(*(combine(getattr(self, name), getattr(other, name)) for name in names))

    def hsic(self) -> Tensor:
        """Return the debiased HSIC1 of linear kernels, a fp64 scalar (Song et al.; arXiv 2010.15327 eq. 3).

        With K, L the Gram matrices, their diagonals set to zero:
        HSIC1 = [tr(KL) + 1ᵀK1 1ᵀL1 / ((n-1)(n-2)) - 2/(n-2) 1ᵀKL1] / (n(n-3)).

        Raises
        ------
        UserError
            For fewer than four rows, where it is not defined.

        """
        n = float(self.count)
        _require_rows(int(n))
        trace = torch.linalg.vector_norm(self.products) ** 2 - self.squares_xy
        total_k = self.sum_x.square().sum() - self.squares_x
        total_l = self.sum_y.square().sum() - self.squares_y
        total_kl = (
            self.sum_x @ self.products @ self.sum_y
            - self.sum_x @ self.weighted_x
            - self.sum_y @ self.weighted_y
            + self.squares_xy
        )
        return (trace + total_k * total_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * total_kl) / (n * (n - 3))

    def hsic_biased(self) -> Tensor:
        """Return ||X_cᵀ Y_c||_F² / (n-1)² with centred columns, a fp64 scalar (arXiv 1905.00414)."""
        covariance = (self.products - torch.outer(self.sum_x, self.sum_y) / self.count) / (self.count - 1)
        return covariance.square().sum()


@dataclass(frozen=True)
class HsicEstimates:
    """HSIC of two representations, with what the jackknife needs."""

    debiased: Tensor
    """Over all rows, then without each shard in turn: (1 + shards,); (1,) for n = 4."""
    biased: Tensor
    """Over all rows, a scalar."""


@dataclass(frozen=True)
class Similarity:
    """How alike a layer's representations of the same n inputs are, before (X) and after (Y) tuning."""

    cka: float
    """Debiased linear CKA; NaN where a representation is the same for all inputs."""
    cka_stderr: float
    """Its jackknife standard error; NaN for n = 4, where no shard can be left out."""
    cka_biased: float
    """The usual linear CKA, which tends to 1 for n << d whatever the representations are."""
    cosine: float
    """Mean cosine of x and y; NaN where a row is zero."""
    cosine_centered: float
    """The same after subtracting each representation's mean over the inputs."""
    relative_l2: float
    """||Y - X||_F / ||X||_F."""
    n: int
    """Inputs."""


def hsic_estimates(x: Tensor, y: Tensor) -> HsicEstimates:
    """Return HSIC of paired rows x (n, d_x), y (n, d_y), over all of them and without each shard.

    Row i belongs to shard i modulo ``SHARDS``, so shards are alike where rows come in order of their task.
    """
    _require_rows(len(x))
    x, y = _compact(centred(x)), _compact(centred(y))
    count = min(SHARDS, len(x))
    shards = [CrossMoments.of(x[first::count], y[first::count]) for first in range(count)]
    total = functools.reduce(operator.add, shards)
    left = [total - shard for shard in shards]
    enough = all(rest.count >= MIN_ROWS for rest in left)
    estimates = [moments.hsic() for moments in [total, *(left if enough else [])]]
    return HsicEstimates(debiased=torch.stack(estimates), biased=total.hsic_biased())


def cka(xx: HsicEstimates, xy: HsicEstimates, yy: HsicEstimates) -> tuple[float, float, float]:
    """Return (debiased CKA, its jackknife standard error, biased CKA).

    CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), a ratio of sums over all rows (arXiv 2010.15327).
    Without each of G shards in turn it takes values t_g, and stderr² = (G-1)/G sum (t_g - mean t)²
    (Efron & Tibshirani, An Introduction to the Bootstrap, eq. 11.5).
    """
    values = _ratio(xx.debiased, xy.debiased, yy.debiased)
    biased = _ratio(xx.biased, xy.biased, yy.biased)
    return float(values[0]), _jackknife_stderr(values[1:]), float(biased)


def compare(x: Tensor, y: Tensor, xx: HsicEstimates) -> Similarity:
    """Return how alike x and y, both (n, d), are; ``xx`` = ``hsic_estimates(x, x)`` is the same for every y.

    Raises
    ------
    UserError
        For fewer than four rows.

    """
    value, stderr, biased = cka(xx, hsic_estimates(x, y), hsic_estimates(y, y))
    return Similarity(
        cka=value,
        cka_stderr=stderr,
        cka_biased=biased,
        cosine=mean_cosine(x, y),
        cosine_centered=mean_cosine(centred(x), centred(y)),
        relative_l2=relative_l2(x, y),
        n=len(x),
    )


def centred(x: Tensor) -> Tensor:
    """Return the rows of x (n, d) without their mean, fp64; equal rows become exactly zero."""
    x = x.double() - x[0].double()  # the mean of equal numbers may not be that number
    return x - x.mean(dim=0)


def mean_cosine(x: Tensor, y: Tensor) -> float:
    """Return the mean over rows of x·y / (|x||y|), for x and y (n, d); NaN where a row is zero."""
    x, y = x.double(), y.double()
    norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    return float(((x * y).sum(dim=1) / norms).mean())


def relative_l2(x: Tensor, y: Tensor) -> float:
    """Return ||Y - X||_F / ||X||_F for x and y (n, d)."""
    x = x.double()
    return float(torch.linalg.vector_norm(y.double() - x) / torch.linalg.vector_norm(x))


def _compact(x: Tensor) -> Tensor:
    """Return rows with the same Gram matrix in at most n features: X = RᵀQᵀ has X Xᵀ = RᵀR."""
    n, d = x.shape
    return torch.linalg.qr(x.T, mode="r").R.T if n < d else x


def _require_rows(n: int) -> None:
    if n < MIN_ROWS:
        raise UserError(f"debiased CKA needs at least {MIN_ROWS} inputs, got {n}; give more rows")


def _ratio(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    scale = xx * yy
    return torch.where(scale > 0, xy / scale.sqrt(), math.nan)


def _jackknife_stderr(values: Tensor) -> float:
    if len(values) == 0:
        return math.nan
    return float(((len(values) - 1) * values.var(correction=0)).sqrt())
