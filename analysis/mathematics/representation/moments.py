"""Linear CKA from sums over rows: exact, one pass over the rows, with a jackknife clustered by input. No I/O.

Sums of disjoint sets of rows add up to the sums of all (:class:`CrossMoments`), so leaving a shard of the
inputs out is a subtraction. One layer takes about ``SHARDS + 4`` matrices of d x d in fp64, whatever
the number of rows: 53 MB for d = 576. It is for these that layers are taken one after another: for all layers
of TinyLlama (d = 2048) at once they would be 15 GB, for one 0.7 GB. Everything is fp64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankdrift.errors import UserError

MIN_ROWS = 4
"""HSIC1 divides by n (n - 3)."""
SHARDS = 16
"""Shards of the jackknife, or one an input where there are fewer inputs."""


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
        require_rows(int(n))
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

    def cross_covariance(self) -> Tensor:
        """Return X_cᵀ Y_c / (n-1) with centred columns, (d_x, d_y)."""
        return (self.products - torch.outer(self.sum_x, self.sum_y) / self.count) / (self.count - 1)

    def hsic_biased(self) -> Tensor:
        """Return ||X_cᵀ Y_c||_F² / (n-1)² with centred columns, a fp64 scalar (arXiv 1905.00414)."""
        return self.cross_covariance().square().sum()


@dataclass(frozen=True)
class HsicEstimates:
    """HSIC of two representations, with what the jackknife needs."""

    debiased: Tensor
    """Over all rows, then without each shard in turn: (1 + shards,); (1,) where none can be left out."""
    biased: Tensor
    """Over all rows, a scalar."""


def hsic_estimates(x: Tensor, y: Tensor, inputs: Tensor, shards: Sequence[CrossMoments]) -> HsicEstimates:
    """Return the debiased HSIC of paired rows x (n, d_x) and y (n, d_y), which belong to the inputs (n,).

    HSIC1 is unbiased for independent rows: it leaves out the products of a row with itself. Where several
    rows are of one input, products within an input are left out: of the Gram matrices K = X Xᵀ and L = Y Yᵀ
    only entries between different inputs count, of each the part that is a sum a_i + b_j is taken away (its
    orthogonal projection on these entries), and HSIC is what remains of <K, L>. With one row an input that is
    HSIC1, the U-centred inner product (Székely & Rizzo, Annals of Statistics 42, 2014). An inner product it
    is in any case, so that |CKA| <= 1 by Cauchy and Schwarz, which corrections of a biased estimate do not
    keep. NaN for rows of fewer than three inputs.

    Parameters
    ----------
    x, y
        The rows.
    inputs
        Which input each belongs to, 0, 1, ...
    shards
        :func:`shard_moments` of the same rows.

    Raises
    ------
    UserError
        For fewer than four rows.

    """
    total = total_moments(shards)
    require_rows(int(total.count))
    enough = len(shards) > 1 and all(total.count - shard.count >= MIN_ROWS for shard in shards)
    left = range(len(shards)) if enough else ()
    if not share_inputs(inputs):
        values = [total.hsic(), *((total - shards[number]).hsic() for number in left)]
    else:
        pairs = _InputPairs.of(x, y, inputs, len(shards))
        values = [pairs.hsic(total.products, None)]
        values += [pairs.hsic(total.products - shards[n].products, n) for n in left]
    return HsicEstimates(debiased=torch.stack(values), biased=total.hsic_biased())


@dataclass(frozen=True)
class _InputPairs:
    """What HSIC over pairs of inputs needs of all rows: leaving a shard out costs no pass over them."""

    inputs: Tensor
    """(n,), 0 ... inputs - 1: which input each row belongs to."""
    shard: Tensor
    """(inputs,): which shard each input belongs to."""
    sizes: Tensor
    """Rows of each input, (inputs,)."""
    within: Tensor
    """Sum of K L over the pairs of rows within each input, (inputs,)."""
    rows: tuple[Tensor, Tensor]
    """Of K and of L: each row's sum over all other inputs, (n,)."""
    of_shards: tuple[Tensor, Tensor]
    """Of K and of L: each row's sum over all rows of each shard, (n, shards)."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor, inputs: Tensor, shards: int) -> _InputPairs:
        names, inputs = inputs.unique(return_inverse=True)
        sizes, shard = inputs.bincount(), names % shards
        order, lengths = inputs.argsort(stable=True), sizes.tolist()
        blocks = zip(x[order].split(lengths), y[order].split(lengths), strict=True)
        within = torch.stack([torch.sum((a @ a.T) * (b @ b.T)) for a, b in blocks])
        rows, of_shards = [], []
        for part in (x, y):
            sums = part.new_zeros(len(sizes), part.shape[1]).index_add_(0, inputs, part)
            by_shard = part @ part.new_zeros(shards, part.shape[1]).index_add_(0, shard, sums).T
            of_shards.append(by_shard)
            rows.append(by_shard.sum(dim=1) - (part * sums[inputs]).sum(dim=1))
        return cls(inputs, shard, sizes.double(), within, (rows[0], rows[1]), (of_shards[0], of_shards[1]))

    def hsic(self, products: Tensor, left_out: int | None) -> Tensor:
        """Return HSIC without a shard, or of all: ``products`` is the sum of x yᵀ over the rows that stay."""
        there = self.shard != (-1 if left_out is None else left_out)
        sizes = self.sizes * there
        n, pairs = float(sizes.sum()), float(sizes.sum() ** 2 - sizes.square().sum())
        if int(there.sum()) < 3 or pairs <= 2 * n:
            return products.new_tensor(math.nan)
        stay = there[self.inputs]
        row_k, row_l = (
            (rows if left_out is None else rows - of_shards[:, left_out])[stay]
            for rows, of_shards in zip(self.rows, self.of_shards, strict=True)
        )
        inner = torch.linalg.vector_norm(products) ** 2 - self.within[there].sum()
        return (inner - 2 * _additive(row_k, self.inputs[stay], sizes) @ row_l) / (pairs - 2 * n)


def _additive(rows: Tensor, inputs: Tensor, sizes: Tensor) -> Tensor:
    """Return u (n,) such that u_a + u_b is closest to a symmetric matrix whose rows sum to ``rows``.

    Over entries between different inputs. With U_i the sum of u over input i of m_i rows and U that of all,
    the normal equations are (n - m_i) u_a + U - U_i = rows_a.
    """
    n = sizes.sum()
    of_inputs = rows.new_zeros(len(sizes)).index_add_(0, inputs, rows)
    rest = n - 2 * sizes
    whole = (of_inputs / rest).sum() / (1 + (sizes / rest).sum())
    parts = (of_inputs - sizes * whole) / rest
    return (rows - whole + parts[inputs]) / (n - sizes)[inputs]


def shard_moments(x: Tensor, y: Tensor, inputs: Tensor) -> list[CrossMoments]:
    """Return the moments of paired, centred rows x (n, d_x), y (n, d_y), fp64, shard by shard.

    ``inputs`` (n,) says which input a row belongs to, 0, 1, ...; tokens of one input are no independent
    observations and stay together. Input i belongs to shard i modulo ``SHARDS``, so shards are alike where
    inputs come in order of their task. With n < d rows are held in n features (``compact``).
    """
    require_rows(len(x))
    x, y = (compact(x),) * 2 if x is y else (compact(x), compact(y))
    count = min(SHARDS, len(inputs.unique()))
    shard = inputs % count
    return [CrossMoments.of(x[shard == index], y[shard == index]) for index in range(count)]


def share_inputs(inputs: Tensor) -> bool:
    """Return whether several rows belong to one input, where ``inputs`` (n,) says which each belongs to."""
    return len(inputs.unique()) < len(inputs)


def total_moments(shards: Sequence[CrossMoments]) -> CrossMoments:
    """Return the moments of all shards together."""
    return functools.reduce(operator.add, shards)


def cka(xx: HsicEstimates, xy: HsicEstimates, yy: HsicEstimates) -> tuple[float, float, float]:
    """Return (debiased CKA, its jackknife standard error, biased CKA).

    CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), a ratio of sums over all rows (arXiv 2010.15327).
    Without each of G shards in turn it takes values t_g, and stderr² = (G-1)/G sum (t_g - mean t)²
    (Efron & Tibshirani, An Introduction to the Bootstrap, eq. 11.5). NaN where HSIC(X, X) HSIC(Y, Y) <= 0:
    a representation is the same for all inputs, or its variance cannot be told from zero.
    """
    values = hsic_ratio(xx.debiased, xy.debiased, yy.debiased)
    biased = hsic_ratio(xx.biased, xy.biased, yy.biased)
    return float(values[0]), _jackknife_stderr(values[1:]), float(biased)


def hsic_ratio(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Return xy / sqrt(xx yy) element by element; NaN where xx or yy is not positive."""
    return torch.where((xx > 0) & (yy > 0), xy / (xx * yy).sqrt(), math.nan)


def centred(x: Tensor) -> Tensor:
    """Return the rows of x (n, d) without their mean, fp64; equal rows become exactly zero."""
    x = x.double() - x[0].double()  # the mean of equal numbers may not be that number
    return x - x.mean(dim=0)


def compact(x: Tensor) -> Tensor:
    """Return rows with the same Gram matrix in at most n features: X = RᵀQᵀ has X Xᵀ = RᵀR."""
    n, d = x.shape
    return torch.linalg.qr(x.T, mode="r").R.T if n < d else x


def require_rows(n: int) -> None:
    """Raise UserError where debiased HSIC is not defined."""
    if n < MIN_ROWS:
        raise UserError(f"debiased CKA needs at least {MIN_ROWS} inputs, got {n}; give more rows")


def _jackknife_stderr(values: Tensor) -> float:
    if len(values) == 0:
        return math.nan
    return float(((len(values) - 1) * values.var(correction=0)).sqrt())
