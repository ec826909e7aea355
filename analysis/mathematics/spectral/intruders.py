"""Intruder dimensions: leading singular vectors of W that resemble no singular vector of W0.

Shuttleworth et al., arXiv 2410.21228, definition 3.1. The label says that a vector is spread over many of the
base's, not that it is outside their span: where W0 has full rank nothing is. A random direction is one
at any usual threshold, so the null beside each count is what random directions give, not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import betainc, erf, gammaln

GRID = 20_000
"""Points of the quadrature of a largest coordinate's law."""
REACH = 12.0
"""Standard deviations that no coordinate of a Gaussian vector exceeds."""


@dataclass(frozen=True)
class Intruders:
    """Leading singular vectors of W that resemble no singular vector of W0."""

    count: float
    """NaN where the vectors are not defined."""
    energy: float
    """Their share of the leading vectors' sigma^2; NaN for the zero matrix."""


def best_cosines(components: np.ndarray) -> np.ndarray:
    """Return max_i |x_i^T y_j|, (t,), of unit vectors y_j given by their components (k, t) along all x_i."""
    return np.abs(components).max(axis=0)


def intruders(cosines: np.ndarray, sigma: np.ndarray, threshold: float) -> Intruders:
    """Return how many of t leading vectors are intruders, and their share of these vectors' energy.

    A singular vector of W is an intruder where its largest |cosine| with all singular vectors of W0 is below
    the threshold. ``cosines`` and ``sigma`` are (t,).
    """
    flagged = cosines < threshold
    energy = np.square(sigma)
    share = float(energy[flagged].sum() / energy.sum()) if energy.any() else float("nan")
    return Intruders(count=int(flagged.sum()), energy=share)


@cache
def random_cosine(dimension: int, vectors: int) -> float:
    """Return the expected largest |cosine| of a random direction of R^d with ``vectors`` orthonormal ones.

    0.137 for a full basis of d = 576, 0.080 for 2048. A Gaussian vector's direction and length are
    independent, so it is E max |g_i| over E |g|: the integral of 1 - erf(x / sqrt(2))^vectors over the mean
    of the chi distribution with d degrees of freedom.
    """
    grid = (np.arange(GRID) + 0.5) * REACH / GRID
    largest = float(np.sum(1 - erf(grid / np.sqrt(2)) ** vectors)) * REACH / GRID
    return largest / float(np.sqrt(2) * np.exp(gammaln((dimension + 1) / 2) - gammaln(dimension / 2)))


def random_intruder_share(threshold: float, dimension: int, vectors: int) -> float:
    """Return the probability that a random direction of R^d is an intruder at a threshold.

    The square of one cosine follows Beta(1/2, (d - 1)/2); of several, the largest is treated as that of
    independent ones: at most 0.09 off for d = 64, 0.03 for 576, 0.001 where the threshold is 0.5 or more.
    """
    if dimension == 1:
        return float(threshold > 1)
    return float(betainc(0.5, (dimension - 1) / 2, threshold**2) ** vectors)
