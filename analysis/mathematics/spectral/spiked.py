"""Signal and noise in a spectrum: the Marchenko-Pastur bulk, its edge, and when a spike leaves it.

The model is an m x n matrix of iid entries of standard deviation s plus a few strong directions (Benaych-
Georges & Nadakuditi, arXiv 1103.2221, after Baik, Ben Arous & Peche, math/0403022). Weights and updates are
not iid: what is fitted here is a yardstick, to be read as "as many values as noise of this size would not
give", not a test of a hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from rankdrift.analysis.mathematics.spectral.nulls import gaussian_quantiles

TRACY_WIDOM = 3.27
"""0.999 quantile of the Tracy-Widom law (beta = 1): noise alone puts a value above the edge once in 1000."""


@dataclass(frozen=True)
class Spike:
    """What a planted direction of strength theta becomes in the noise around it."""

    sigma: float
    """Its singular value; the bulk's edge where it does not leave the bulk."""
    cosine_left: float
    """|cosine| of its left singular vector with the planted one; 0 where it does not leave the bulk."""
    cosine_right: float


def noise_level(sigma: np.ndarray, rows: int, columns: int) -> float:
    """Return the standard deviation s of iid entries that have the same median singular value.

    ``sigma`` are all min(rows, columns) values. The median does not see spikes, unlike the norm.
    """
    return float(np.median(sigma)) / _median(rows, columns)


def bulk_edge(noise: float, rows: int, columns: int) -> float:
    """Return s (sqrt(m) + sqrt(n)), the largest singular value of noise in the limit."""
    return float(noise * (np.sqrt(rows) + np.sqrt(columns)))


def spike_threshold(noise: float, rows: int, columns: int) -> float:
    """Return the singular value above which noise of this size puts one in a thousand times.

    sigma^2 = s^2 (mu + 3.27 tau), mu = (sqrt(m - 1) + sqrt(n))^2 and, as scale of its fluctuations,
    tau = (sqrt(m - 1) + sqrt(n)) (1/sqrt(m - 1) + 1/sqrt(n))^(1/3), m >= n (Johnstone 2001).
    """
    large, small = max(rows, columns), min(rows, columns)
    root = np.sqrt(max(large - 1, 1)), np.sqrt(small)
    scale = sum(root) * (1 / root[0] + 1 / root[1]) ** (1 / 3)
    return float(noise * np.sqrt(sum(root) ** 2 + TRACY_WIDOM * scale))


def onset(noise: float, rows: int, columns: int) -> float:
    """Return theta_c = s (m n)^(1/4), the strength from which on a planted direction leaves the bulk."""
    return float(noise * (rows * columns) ** 0.25)


def planted_spike(theta: float, noise: float, rows: int, columns: int) -> Spike:
    """Return the singular value and the cosines of a planted rank-1 matrix of norm ``theta`` in noise.

    sigma = sqrt((theta^2 + m s^2)(theta^2 + n s^2)) / theta and, on the left,
    cos^2 = 1 - m s^2 (n s^2 + theta^2) / (theta^2 (theta^2 + m s^2)); m and n exchanged on the right.
    """
    if theta <= onset(noise, rows, columns):
        return Spike(bulk_edge(noise, rows, columns), 0.0, 0.0)
    square, left, right = theta**2, rows * noise**2, columns * noise**2
    return Spike(
        sigma=float(np.sqrt((square + left) * (square + right)) / theta),
        cosine_left=float(np.sqrt(1 - left * (right + square) / (square * (square + left)))),
        cosine_right=float(np.sqrt(1 - right * (left + square) / (square * (square + right)))),
    )


def hard_threshold(noise: float, rows: int, columns: int) -> float:
    """Return the optimal hard threshold of singular values (Gavish & Donoho, arXiv 1305.5870).

    lambda sqrt(max(m, n)) s, lambda^2 = 2 (beta + 1) + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1)),
    beta = min / max of m and n. With s from ``noise_level`` it is their omega(beta) times the median value,
    omega by the law's own median rather than by a polynomial.
    """
    beta = min(rows, columns) / max(rows, columns)
    square = 2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1))
    return float(np.sqrt(square * max(rows, columns)) * noise)


@cache
def _median(rows: int, columns: int) -> float:
    """Return the median singular value of iid standard normal entries, in the limit."""
    return float(gaussian_quantiles(rows, columns, np.array([0.5]))[0])
