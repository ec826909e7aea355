"""Gradients as samples of rows: how large they are without their noise, and whether those of tasks agree.

Squared norms count the noise as if it were gradient: of a single row they are mostly noise, and cosines are
drawn to 0. Inner products of different rows are unbiased, and everything here is made of them. They are those
that ``products.GradientSums`` keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ZERO = "zero gradient"
ONE_SHARD = "one row: its noise is unknown"
NOISE = "noise exceeds the gradient: the estimate of its squared norm is not positive"
TWO_SHARDS = "standard error: fewer than 3 shards"
FRAGILE = "standard error: without one of the shards, noise exceeds the gradient"


@dataclass(frozen=True)
class Sample:
    """Estimates over all shards of one task, and without each of them in turn: arrays (1 + shards,)."""

    weight: Array
    """What the sum of the shards' x_r is divided by to give the gradient: the rows n, of all shards; without
    one the targets that are left, in means a row. NaN instead of 0."""
    observed: Array
    """|g|², the squared norm of the gradient over these rows: |G|² + S / n in expectation."""
    square: Array
    """|G|², without its noise; NaN for one shard."""
    trace: Array
    """S, the trace of the covariance of a row's part in the gradient; NaN for one shard."""

    @property
    def shards(self) -> int:
        """The number of shards, K."""
        return len(self.weight) - 1


def sample(gram: Array, rows: Array, targets: Array) -> Sample:
    """Return |G|² and S of one task from the inner products of its shards' sums.

    The gradient of a mean over targets is a ratio, g = sum_k s_k / sum_k t_k, of sums over the b_k rows of
    shard k and their t_k targets: a longer row counts more, and which rows are drawn decides on both sums.
    The part of shard k in its noise is e_k = (s_k - t_k g) / (t / n), with t targets and n rows in all
    (linearised ratio estimator: Cochran, Sampling Techniques, 1977, chapter 6), and analysis of variance of
    K shards gives

        S = sum_k |e_k|² / b_k / (K - 1),    |G|² = |g|² - S / n.

    Where every row has as many targets, and shards are of equal size, these are the unbiased estimators of
    arXiv 1812.06162 (appendix A.1) for the batches B_small = b and B_big = n; |G|² is the mean inner product
    of two different shards then.

    Parameters
    ----------
    gram
        Shape (K, K), of the sums of x_r = s_r / (t / n).
    rows, targets
        Rows in each shard and targets of these, (K,).

    """
    everything = np.ones(len(rows), dtype=bool)
    chosen = [everything, *(~np.eye(len(rows), dtype=bool))]
    unit = targets.sum() / rows.sum()
    return Sample(*np.array([_estimates(gram, rows, targets / unit, those) for those in chosen]).T)


def _estimates(gram: Array, rows: Array, weights: Array, chosen: NDArray[np.bool_]) -> list[float]:
    """Return (weight, observed, square, trace) of the chosen shards."""
    gram, rows, weights = gram[np.ix_(chosen, chosen)], rows[chosen], weights[chosen]
    shards, n, weight = len(rows), rows.sum(), weights.sum()
    if not shards:
        return [math.nan] * 4
    observed = float(gram.sum() / weight**2)
    if shards < 2:
        return [weight, observed, math.nan, math.nan]
    # e = (I - share 1^T) x, in units of these rows' own mean number of targets
    center = np.eye(shards) - np.outer(weights / weight, np.ones(shards))
    parts = np.einsum("ki,ij,kj->k", center, gram, center) * (n / weight) ** 2
    trace = float((parts / rows).sum() / (shards - 1))
    return [weight, observed, observed - trace / n, trace]


@dataclass(frozen=True)
class NoiseScale:
    """The noise of one task's gradient (arXiv 1812.06162), with rows as the unit of batches."""

    gradient_square: float
    gradient_square_stderr: float
    noise_trace: float
    noise_trace_stderr: float
    noise_scale: float
    noise_scale_stderr: float
    reason: str


def noise_scale(found: Sample) -> NoiseScale:
    """Return |G|², S and the simple noise scale B = S / |G|² in rows: a ratio of means, no mean of ratios.

    Standard errors are jackknives over the shards. The scale is NaN where the estimate of |G|² is not
    positive: then these rows do not show a gradient.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = np.where(found.square > 0, found.trace / found.square, np.nan)
    return NoiseScale(
        found.square[0],
        jackknife_stderr(found.square[1:]),
        found.trace[0],
        jackknife_stderr(found.trace[1:]),
        scales[0],
        jackknife_stderr(scales[1:]),
        _reason(found),
    )


@dataclass(frozen=True)
class Alignment:
    """Whether the gradients of two tasks point the same way."""

    inner_product: float
    inner_product_stderr: float
    cosine: float
    cosine_corrected: float
    cosine_corrected_stderr: float
    conflict: bool
    reason: str


def alignment(cross: Array, first: Sample, second: Sample) -> Alignment:
    """Return the cosine of two tasks' gradients, as observed and corrected for the noise of both.

    The rows of two tasks are different, so their noise is independent and g_i · g_j is unbiased; the norms
    are not, and the observed cosine is too small by the factor sqrt(|G_i|² |G_j|² / (|g_i|² |g_j|²)), the
    attenuation of Spearman (1904). The corrected cosine is g_i · g_j / sqrt(|G_i|² |G_j|²) with the unbiased
    |G|² of ``sample``: for tasks of two halves a, b the mean of the four g_i^x · g_j^y over
    sqrt((g_i^a · g_i^b) (g_j^a · g_j^b)). It is not cut off at 1, which would bias it. Standard errors are
    jackknives over the shards of both tasks. A conflict is a negative inner product (arXiv 2001.06782).

    Parameters
    ----------
    cross
        Inner products of the two tasks' shard sums, (shards of the first, shards of the second).
    first, second
        The two tasks.

    """
    inner_first = _without_each(cross.sum(), cross.sum(axis=1)) / (first.weight * second.weight[0])
    inner_second = _without_each(cross.sum(), cross.sum(axis=0)) / (first.weight[0] * second.weight)
    corrected_first = _over_root(inner_first, first.square, second.square[0])
    corrected_second = _over_root(inner_second, first.square[0], second.square)
    return Alignment(
        inner_first[0],
        jackknife_stderr(inner_first[1:], inner_second[1:]),
        float(_over_root(inner_first[0], first.observed[0], second.observed[0])),
        corrected_first[0],
        jackknife_stderr(corrected_first[1:], corrected_second[1:]),
        bool(inner_first[0] < 0),
        _reason(first, second),
    )


def reliability(found: Sample) -> Alignment:
    """Return a task's alignment with itself: with the gradient that as many other rows of it would give.

    The inner product is |G|² and the cosine |G|² / |g|²: the square root of two tasks' product is what their
    observed cosine is short by. The corrected cosine is 1 wherever it can be known, whichever shard is left
    out.
    """
    known, reason = found.square[0] > 0, _reason(found)
    return Alignment(
        found.square[0],
        jackknife_stderr(found.square[1:]),
        found.square[0] / found.observed[0] if found.observed[0] > 0 else math.nan,
        1.0 if known else math.nan,
        0.0 if known else math.nan,
        conflict=False,
        reason="" if reason == FRAGILE else reason,
    )


def jackknife_stderr(*left_out: Array) -> float:
    """Return the standard error of an estimate from independent samples, by what it is without each member.

    Each array (K,) holds the estimates without each of one sample's K members: the squared error is the sum
    over the samples of (K - 1) / K sum_k (t_k - mean t)² (Arvesen 1969). NaN where a member or an estimate is
    the only one, or undefined.
    """
    variances = [(len(t) - 1) * np.var(t) if len(t) > 1 else math.nan for t in left_out]
    return math.sqrt(sum(variances))


def _without_each(whole: float, parts: Array) -> Array:
    return np.array([whole, *(whole - parts)])


def _over_root(inner: Array, first: Array, second: Array) -> Array:
    """Return inner / sqrt(first second), NaN where one of them is not positive."""
    defined = (first > 0) & (second > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, inner / np.sqrt(np.where(defined, first * second, np.nan)), np.nan)


def _reason(*found: Sample) -> str:
    """Return why an estimate that divides by |G|² is NaN, or else why its standard error is; else nothing."""
    if any(task.observed[0] == 0 for task in found):
        return ZERO
    if any(task.shards < 2 for task in found):
        return ONE_SHARD
    if any(task.square[0] <= 0 for task in found):
        return NOISE
    if any(task.shards < 3 for task in found):
        return TWO_SHARDS
    return FRAGILE if any((task.square[1:] <= 0).any() for task in found) else ""
