"""What noise gives for every rank metric: a rank says something only beside that of noise of the same shape.

The published rank of full fine-tuning's update, about 2000 of 4096 (Biderman et al., arXiv 2405.09673),
equals that of iid Gaussian noise; that of a LoRA update is at most r, whatever was learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache

import numpy as np
from scipy.linalg import svdvals

from rankdrift.analysis.mathematics.spectral.linalg import THRESHOLD, RankMetrics, rank_metrics

GRID = 100_000
"""Points of the quadrature of the Marchenko-Pastur law."""
DRAWN_VALUES = 8192
"""Singular values drawn for a product null, over all draws."""
EDELMAN_MEDIAN = float(np.sqrt(1 + 2 * np.log(2)) - 1)
"""Median of sqrt(n) sigma_n of an n x n standard normal matrix, P(x) = 1 - exp(-x^2/2 - x) (Edelman 1988)."""


@cache
def gaussian_null(rows: int, columns: int) -> RankMetrics:
    """Return the rank metrics of a ``rows`` x ``columns`` matrix of iid standard normal entries.

    They are those of the deterministic spectrum whose i-th of k values is the (i - 1/2) / k quantile of the
    Marchenko-Pastur law (1967), within 2 % of simulation from k = 192 on. The condition number of a square
    matrix is the median one instead: its smallest value has a law of its own, and no mean.
    """
    sigma = gaussian_singular_values(rows, columns)
    metrics = rank_metrics(sigma, rows, columns)
    if rows != columns:
        return metrics
    return replace(metrics, condition_number=float(sigma[0] * np.sqrt(rows) / EDELMAN_MEDIAN))


def threshold_rank_null(draws: np.ndarray, norm: float) -> float:
    """Return the mean threshold rank of noise of a Frobenius norm, by its singular values (draws, k).

    The threshold is absolute: alone among the ranks this one is not the same for c W.
    """
    scales = norm / np.linalg.norm(draws, axis=1, keepdims=True)
    return float(np.count_nonzero(draws * scales > THRESHOLD, axis=1).mean())


@cache
def gaussian_singular_values(rows: int, columns: int) -> np.ndarray:
    """Return the singular values (k,), descending, that an iid standard normal matrix has in the limit."""
    small = min(rows, columns)
    return gaussian_quantiles(rows, columns, (np.arange(small) + 0.5) / small)[::-1]


def gaussian_quantiles(rows: int, columns: int, shares: np.ndarray) -> np.ndarray:
    """Return quantiles of the limit law of the singular values of an iid standard normal matrix.

    Values s lie between a = sqrt(large) - sqrt(small) and b = sqrt(large) + sqrt(small), with density
    proportional to sqrt((b^2 - s^2)(s^2 - a^2)) / s. With s^2 = (a^2 + b^2)/2 - (b^2 - a^2)/2 cos(t) the
    density of t is proportional to sin(t)^2 / s^2, which is smooth on (0, pi), also where a = 0.
    """
    small, large = sorted((rows, columns))
    angle = (np.arange(GRID) + 0.5) * np.pi / GRID
    squares = small + large - 2 * np.sqrt(small * large) * np.cos(angle)
    cumulative = np.cumsum(np.sin(angle) ** 2 / squares)
    return np.interp(shares, cumulative / cumulative[-1], np.sqrt(squares))


@cache
def product_null(rows: int, columns: int, rank: int) -> RankMetrics:
    """Return the mean rank metrics of B A with iid standard normal B (rows x rank) and A (rank x columns).

    Of the condition number it is the median: it has no mean where the rank is that of the matrix.
    """
    draws = [rank_metrics(sigma, rows, columns) for sigma in product_draws(rows, columns, rank)]
    values = {field.name: [getattr(draw, field.name) for draw in draws] for field in fields(RankMetrics)}
    means = {name: float(np.mean(drawn)) for name, drawn in values.items()}
    return RankMetrics(**means | {"condition_number": float(np.nanmedian(values["condition_number"]))})


@cache
def product_draws(rows: int, columns: int, rank: int) -> np.ndarray:
    """Return the singular values of all draws of B A, (draws, min(rows, columns, rank))."""
    return np.stack(list(product_spectra(rows, columns, rank)))


def product_spectra(rows: int, columns: int, rank: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the singular values of draws of B A, (min(rows, columns, rank),) each, always the same draws.

    They are those of R_B R_A^T, whose factors are drawn directly: the triangular factor of a Gaussian matrix
    has chi-distributed diagonal and normal entries above it (Bartlett 1933).
    """
    generator = np.random.default_rng(seed)
    for _ in range(max(16, DRAWN_VALUES // rank)):
        left, right = (_triangular_factor(size, rank, generator) for size in (rows, columns))
        yield svdvals(left @ right.T)


def _triangular_factor(rows: int, rank: int, generator: np.random.Generator) -> np.ndarray:
    """Return a draw of R in Q R = X for X (rows, rank) standard normal: (min(rows, rank), rank)."""
    height = min(rows, rank)
    factor = np.triu(generator.standard_normal((height, rank)), k=1)
    factor[np.diag_indices(height)] = np.sqrt(generator.chisquare(rows - np.arange(height)))
    return factor
