"""How far the leading singular subspaces of a matrix turned: angles, drift, what perturbation theory says.

A singular vector has no sign, and where singular values are close it has no direction either: the change of
single vectors says little, that of the space they span is defined as long as the gap behind it is.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr, svdvals


def principal_angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the angles between the spans of (d, k) and (d, l) vectors, ascending, radians, min(k, l).

    Cosines are the singular values of Q1^T Q2, sines those of (I - Q1 Q1^T) Q2 (Bjorck & Golub 1973). Both
    are used, since a cosine near 1 cannot tell small angles apart, nor a sine near 1 large ones.
    """
    first, second = _orthonormal(first), _orthonormal(second)
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    shared = first.T @ second
    cosines = svdvals(shared)
    sines = svdvals(second - first @ shared)[::-1]
    return np.arctan2(sines, cosines)


def subspace_overlap(angles: np.ndarray) -> float:
    """Return ||Q1^T Q2||_F^2 / k, the mean cos^2 of k principal angles: 1 where the subspaces are the same.

    Two random k-dimensional subspaces of R^d give k / d (Hu et al., arXiv 2106.09685, section 7.2).
    """
    return float(np.mean(np.cos(angles) ** 2))


def vector_drift(angles: np.ndarray) -> float:
    """Return the root mean square sine of k principal angles, ||P1 - P2||_F / sqrt(2 k) of the projectors.

    0 where the k leading vectors span the same space, 1 where the spaces are orthogonal. Neither the signs of
    the vectors nor a rotation among them changes it; one vector of k replaced by a new one gives sqrt(1 / k).
    """
    return float(np.sqrt(np.mean(np.sin(angles) ** 2)))


def naive_drift(first: np.ndarray, second: np.ndarray) -> float:
    """Return ||U1 - U2||_F / (2 sqrt(k)) of unit columns (d, k) in the order and with the signs they have.

    The drift some published comparisons print, for the comparison with them alone: signs of singular vectors
    are arbitrary, and random ones give 0.7 where nothing changed, as does one new vector at the front, which
    shifts all others by one place.
    """
    return float(np.linalg.norm(first - second) / (2 * np.sqrt(first.shape[1])))


def spectral_gap(sigma: np.ndarray, k: int) -> float:
    """Return sigma_k - sigma_{k+1} of descending singular values; sigma_k where no further one exists."""
    return float(sigma[k - 1] - (sigma[k] if k < len(sigma) else 0.0))


def keeps_its_place(base: np.ndarray, update_norm: float, k: int) -> bool:
    """Return whether the k leading vectors of W0 cannot have changed places with those behind them.

    Each singular value moves by ||dW||_2 at most (Weyl 1912), so the gap behind sigma_k stays open on the
    whole way from W0 to W where it is more than twice that. ``base`` are all values, descending.
    """
    return spectral_gap(base, k) > 2 * update_norm


def wedin_bound(base: np.ndarray, tuned: np.ndarray, update_norm: float, k: int) -> float:
    """Return an upper bound of the sine of the largest angle between the k leading subspaces, in [0, 1].

    Wedin (1972): sin <= ||dW||_2 / delta, on both sides, with delta = sigma_k(W) - sigma_{k+1}(W0), or with
    W and W0 exchanged; the larger delta is used. 1 where neither is positive: nothing is bounded.
    ``base`` and ``tuned`` are all singular values, descending; ``update_norm`` is ||dW||_2.
    """
    following = [float(sigma[k]) if k < len(sigma) else 0.0 for sigma in (base, tuned)]
    separation = max(tuned[k - 1] - following[0], base[k - 1] - following[1])
    return float(min(1.0, update_norm / separation)) if separation > 0 else 1.0


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the span of (d, k) vectors, in float64."""
    return qr(vectors.astype(np.float64), mode="economic")[0]
