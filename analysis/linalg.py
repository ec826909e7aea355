"""Spectra, ranks, subspaces and intruders: pure functions of NumPy arrays, computed in float64.

Singular values come from the Gram matrix of the smaller side. In float64 that is both faster and, for
data stored in float32, more accurate than a float32 SVD: eigenvalues carry an absolute error of about
eps sigma_1^2, so singular values are good down to 1e-7 sigma_1, below which float32 data hold nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, eigh_tridiagonal, lapack, qr, svdvals
from scipy.stats import rankdata

THRESHOLD = 1e-5
"""Threshold of ``threshold_rank``. It is absolute, and calls almost every weight matrix full rank."""
UNDEFINED = 1e-7
"""Share of sigma_1 below which a Gram matrix in float64 no longer holds a singular value."""
BLOCK = 64
"""Columns LAPACK reduces at once; it sets the size of its workspace."""


@dataclass(frozen=True)
class SingularSystem:
    """Singular values of an m x n matrix, k = min(m, n), and its leading t singular vectors."""

    sigma: np.ndarray
    """(k,) all singular values, descending."""
    left: np.ndarray
    """(m, t) left singular vectors. On the longer side a vector whose sigma is lost in rounding is zero."""
    right: np.ndarray
    """(n, t) right singular vectors."""


@dataclass(frozen=True)
class RankMetrics:
    """Size and rank of a matrix by its singular values. Every field of the zero matrix is 0."""

    norm: float
    sigma1: float
    threshold_rank: float
    numerical_rank: float
    entropy_rank: float
    energy_entropy_rank: float
    stable_rank: float
    participation_ratio: float
    e90_energy: float
    e95_energy: float
    e90_nuclear: float
    e95_nuclear: float
    nuclear_norm: float


@dataclass(frozen=True)
class Intruders:
    """Leading singular vectors of W that resemble no singular vector of W0."""

    count: int
    energy: float
    """Their share of the leading vectors' sigma^2; NaN for the zero matrix."""


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return all singular values of an (m, n) matrix, descending, float64, from the smaller Gram matrix."""
    diagonal, below, _, _ = _tridiagonal(_gram(_tall(matrix)))
    return _roots(_eigenvalues(diagonal, below))


def singular_system(matrix: np.ndarray, top: int | None = None) -> SingularSystem:
    """Return all singular values of an (m, n) matrix and its ``top`` leading vectors (all by default).

    The leading vectors cost little beyond the values: both come from one tridiagonalisation.
    """
    tall = _tall(matrix)
    gram = _gram(tall)
    if top is None:
        eigenvalues, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    else:
        eigenvalues, vectors = _leading_eigenvectors(gram, min(top, len(gram)))
    sigma = _roots(eigenvalues)
    other = _other_side(tall, vectors, sigma)
    wide = matrix.shape[0] < matrix.shape[1]
    left, right = (vectors, other) if wide else (other, vectors)
    return SingularSystem(sigma=sigma, left=left, right=right)


def product_singular_values(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the singular values of ``left @ right`` without forming it; (m, r) by (r, n) gives min(m, n, r).

    Q_L R_L = left and Q_R R_R = right^T give left right = Q_L (R_L R_R^T) Q_R^T, whose core is at most r x r.
    """
    return svdvals(_triangle(left) @ _triangle(right.T).T)


def rank_metrics(sigma: np.ndarray, rows: int, columns: int) -> RankMetrics:
    """Return size and ranks from the singular values (descending) of a ``rows`` x ``columns`` matrix.

    With p = sigma / sum(sigma) and q = sigma^2 / sum(sigma^2): entropy rank exp(-sum p ln p) (Roy & Vetterli,
    EUSIPCO 2007), energy entropy rank the same of q, stable rank sum(sigma^2) / sigma_1^2, participation
    ratio 1 / sum(q^2), eX_energy and eX_nuclear the fewest leading values that hold X % of q and of p.
    Numerical rank counts sigma > sigma_1 max(m, n) eps with the eps of float32, the precision of the data.
    """
    if not sigma.any():
        return RankMetrics(**dict.fromkeys(RankMetrics.__dataclass_fields__, 0.0))
    nuclear, energy = sigma / sigma.sum(), np.square(sigma) / np.square(sigma).sum()
    smallest = sigma[0] * max(rows, columns) * np.finfo(np.float32).eps
    return RankMetrics(
        norm=float(np.linalg.norm(sigma)),
        sigma1=float(sigma[0]),
        threshold_rank=float(np.count_nonzero(sigma > THRESHOLD)),
        numerical_rank=float(np.count_nonzero(sigma > smallest)),
        entropy_rank=_entropy_rank(nuclear),
        energy_entropy_rank=_entropy_rank(energy),
        stable_rank=float(1 / energy[0]),
        participation_ratio=float(1 / np.square(energy).sum()),
        e90_energy=_fewest(energy, 0.90),
        e95_energy=_fewest(energy, 0.95),
        e90_nuclear=_fewest(nuclear, 0.90),
        e95_nuclear=_fewest(nuclear, 0.95),
        nuclear_norm=float(sigma.sum()),
    )


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


def best_cosines(vectors: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return max_i |cos(y_j, x_i)|, (k,), of unit columns y_j (d, k) over all unit columns x_i (d, t)."""
    return np.abs(base.T @ vectors.astype(base.dtype)).max(axis=0).astype(np.float64)


def intruders(cosines: np.ndarray, sigma: np.ndarray, threshold: float) -> Intruders:
    """Return how many of k leading vectors are intruders, and their share of these vectors' energy.

    A singular vector of W is an intruder where its largest |cosine| with all singular vectors of W0 is below
    the threshold (Shuttleworth et al., arXiv 2410.21228, definition 3.1). ``cosines`` and ``sigma`` are (k,).
    """
    flagged = cosines < threshold
    energy = np.square(sigma)
    share = float(energy[flagged].sum() / energy.sum()) if energy.any() else float("nan")
    return Intruders(count=int(flagged.sum()), energy=share)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation of two samples (n,), ties averaged; NaN where one is constant."""
    ranks = rankdata(first), rankdata(second)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _tall(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix or its transpose, whichever has the more rows, in float64."""
    return (matrix.T if matrix.shape[0] < matrix.shape[1] else matrix).astype(np.float64)


def _gram(tall: np.ndarray) -> np.ndarray:
    """Return tall^T tall in column order, which LAPACK overwrites without a copy (it is symmetric)."""
    return (tall.T @ tall).T


def _tridiagonal(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return diagonal, off-diagonal, reflectors and their factors of H^T gram H = T; overwrites ``gram``."""
    reflectors, diagonal, below, factors, info = lapack.dsytrd(
        gram, lower=1, lwork=BLOCK * len(gram), overwrite_a=1
    )
    assert info == 0, f"dsytrd: argument {-info} is illegal"
    return diagonal, below, reflectors, factors


def _eigenvalues(diagonal: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of a symmetric tridiagonal matrix, descending."""
    if len(diagonal) == 1:
        return diagonal
    return eigh_tridiagonal(diagonal, below, eigvals_only=True, lapack_driver="sterf")[::-1]


def _leading_eigenvectors(gram: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all eigenvalues, descending, and the leading eigenvectors (n, top); overwrites ``gram``."""
    order = len(gram)
    if order == 1:
        return gram[0], np.ones((1, 1))
    diagonal, below, reflectors, factors = _tridiagonal(gram)
    eigenvalues = _eigenvalues(diagonal, below)
    _, vectors = eigh_tridiagonal(diagonal, below, select="i", select_range=(order - top, order - 1))
    vectors = np.asfortranarray(vectors[:, ::-1])
    # The reflectors of the lower triangle act on all rows but the first, as those of a QR factorisation.
    rotated, _, info = lapack.dormqr("L", "N", reflectors[1:, :-1], factors, vectors[1:], lwork=BLOCK * top)
    assert info == 0, f"dormqr: argument {-info} is illegal"
    vectors[1:] = rotated
    return eigenvalues, vectors


def _roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Return singular values from Gram eigenvalues; rounding can leave the smallest of these below 0."""
    return np.sqrt(np.clip(eigenvalues, 0, None))


def _other_side(tall: np.ndarray, vectors: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the singular vectors of the longer side, zero where sigma is lost in rounding."""
    images = tall @ vectors
    lengths = np.linalg.norm(images, axis=0)
    defined = lengths > UNDEFINED * sigma[0]
    return np.divide(images, lengths, out=np.zeros_like(images), where=defined)


def _entropy_rank(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def _fewest(shares: np.ndarray, wanted: float) -> float:
    """Return the fewest leading shares that add up to ``wanted``, forgiving the rounding of the sum."""
    return float(np.searchsorted(np.cumsum(shares), wanted - 1e-12) + 1)


def _triangle(matrix: np.ndarray) -> np.ndarray:
    """Return R of Q R = matrix (m, r), in float64: (min(m, r), r)."""
    return qr(matrix.astype(np.float64), mode="r")[0][: matrix.shape[1]]


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the span of (d, k) vectors, in float64."""
    return qr(vectors.astype(np.float64), mode="economic")[0]
