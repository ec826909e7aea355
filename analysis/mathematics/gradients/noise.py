"""Gradients as samples of rows: how large they are without their noise, and whether those of tasks agree.

Squared norms count the noise as if it were gradient: of a single row they are mostly noise, and cosines are
drawn to 0. Inner products of different rows are unbiased, and everything here is made of them. They are those
that ``gradients.GradientSums`` keeps.
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

    rows: Array
    """n, the rows; NaN instead of 0."""
    observed: Array
    """|g|², the squared norm of the gradient over these rows: |G|² + S / n in expectation."""
    square: Array
    """|G|², unbiased; NaN for one shard."""
    trace: Array
    """S, the trace of the covariance of a row's gradient, unbiased; NaN for one shard."""

    @property
    def shards(self) -> int:
        """The number of shards, K."""
        return len(self.rows) - 1


def sample(gram: Array, sizes: Array) -> Sample:
    """Return |G|² and S of one task from the inner products of its shards' sums.

    With s_k the sum over the b_k rows of shard k, K shards and n rows, analysis of variance gives

        S = (sum_k |s_k|² / b_k - |sum_k s_k|² / n) / (K - 1),    |G|² = |sum_k s_k|² / n² - S / n,

    which for shards of equal size are the estimators of arXiv 1812.06162 (appendix A.1) for the batches
    B_small = b and B_big = n, |g_small|² averaged over the shards. There |G|² is the mean inner product of
    two different shards: for two that of split halves, for more its mean over all ways to halve them.

    Parameters
    ----------
    gram
        Shape (K, K).
    sizes
        Rows in each shard, (K,).

    """
    diagonal, count = np.diag(gram), len(sizes)
    rows = _without_each(sizes.sum(), sizes)
    total = _without_each(gram.sum(), 2 * gram.sum(axis=1) - diagonal)
    spread = _without_each((diagonal / sizes).sum(), diagonal / sizes)
    degrees = np.array([count - 1, *[count - 2] * count], dtype=float)
    rows[rows == 0], degrees[degrees <= 0] = np.nan, np.nan
    trace = (spread - total / rows) / degrees
    observed = total / rows**2
    return Sample(rows, observed, observed - trace / rows, trace)


def _without_each(whole: float, parts: Array) -> Array:
    return np.array([whole, *(whole - parts)])


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
    inner_first = _without_each(cross.sum(), cross.sum(axis=1)) / (first.rows * second.rows[0])
    inner_second = _without_each(cross.sum(), cross.sum(axis=0)) / (first.rows[0] * second.rows)
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
