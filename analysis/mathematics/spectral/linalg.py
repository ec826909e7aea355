"""Singular values and vectors, and ranks from them: pure functions of NumPy arrays, computed in float64.

Singular values come from the Gram matrix of the smaller side. In float64 that is both faster and, for
data stored in float32, more accurate than a float32 SVD: eigenvalues carry an absolute error of about
eps sigma_1^2, so singular values are good down to 1e-7 sigma_1, below which float32 data hold nothing: they
are 0 there, as those of matrices of lower rank have to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from scipy.linalg import eigh, eigh_tridiagonal, lapack, qr, svdvals
from scipy.stats import rankdata

THRESHOLD = 1e-5
"""Threshold of ``threshold_rank``. It is absolute, and calls almost every weight matrix full rank."""
UNDEFINED = 1e-7
"""Share of sigma_1 below which a Gram matrix in float64 no longer holds a singular value."""
BLOCK_ROWS = 4096
"""Rows of a matrix that are held in float64 at once."""
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
class HalfSystem:
    """The SVD of an m x n matrix, k = min(m, n), with the vectors of its shorter side alone.

    A vector of the longer side is the image W v_i / sigma_i: it is formed where it is needed, and components
    along all of them need one product with W. For 49152 x 576 that keeps 3 MB in place of 116.
    """

    matrix: np.ndarray
    """(m, n) the matrix itself, float32 or float64."""
    sigma: np.ndarray
    """(k,) all singular values, descending, float64."""
    vectors: np.ndarray
    """(k, k) all singular vectors of the shorter side, right ones where m >= n; float64."""

    @property
    def wide(self) -> bool:
        """Whether the shorter side is the left one."""
        return self.matrix.shape[0] < self.matrix.shape[1]

    def leading(self, top: int) -> SingularSystem:
        """Return all singular values and the ``top`` leading vectors of both sides."""
        return from_shorter_side(self.matrix, self.sigma, self.vectors[:, :top])

    def components(self, vectors: np.ndarray, side: str) -> np.ndarray:
        """Return x_i^T y_j, (k, t): all singular vectors x_i of the "left" or "right" side, (d, t) y_j.

        Zero for a vector of the longer side whose sigma is lost in rounding.
        """
        if (side == "left") == self.wide:
            return self.vectors.T @ vectors
        products = self.vectors.T @ transposed_product(_tall(self.matrix), vectors)
        defined = (self.sigma > UNDEFINED * self.sigma[0])[:, None]
        return np.divide(products, self.sigma[:, None], out=np.zeros_like(products), where=defined)


@dataclass(frozen=True)
class RankMetrics:
    """Size and rank of a matrix by its singular values; of the zero matrix 0, its condition number NaN."""

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
    nuclear_spectral_ratio: float
    condition_number: float


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return all singular values of an (m, n) matrix, descending, float64, from the smaller Gram matrix."""
    diagonal, below, _, _ = _tridiagonal(_gram(_tall(matrix)))
    return roots(_eigenvalues(diagonal, below))


def singular_system(matrix: np.ndarray, top: int) -> SingularSystem:
    """Return all singular values of an (m, n) matrix and its ``top`` leading vectors.

    The leading vectors cost little beyond the values: both come from one tridiagonalisation.
    """
    tall = _tall(matrix)
    eigenvalues, vectors = leading_eigenvectors(_gram(tall), min(top, tall.shape[1]))
    return from_shorter_side(matrix, roots(eigenvalues), vectors)


def from_shorter_side(matrix: np.ndarray, sigma: np.ndarray, vectors: np.ndarray) -> SingularSystem:
    """Return the singular system of an (m, n) matrix by its leading vectors of the shorter side, (k, t)."""
    images = _other_side(_tall(matrix), vectors, sigma)
    wide = matrix.shape[0] < matrix.shape[1]
    return SingularSystem(sigma, *((vectors, images) if wide else (images, vectors)))


def half_system(matrix: np.ndarray) -> HalfSystem:
    """Return all singular values of an (m, n) matrix and all vectors of its shorter side."""
    gram = _gram(_tall(matrix))
    eigenvalues, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    return HalfSystem(matrix, roots(eigenvalues[::-1]), vectors[:, ::-1])


def product_singular_values(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the singular values of ``left @ right`` without forming it; (m, r) by (r, n) gives min(m, n, r).

    Q_L R_L = left and Q_R R_R = right^T give left right = Q_L (R_L R_R^T) Q_R^T, whose core is at most r x r.
    Values below the rounding of that product, r eps ||R_L||_F ||R_R||_F, are 0: factors that cancel, as those
    of an adapter beside its start, leave nothing else. There are none for factors of rank 0.
    """
    if not left.shape[1]:
        return np.zeros(0)
    first, second = _triangle(left), _triangle(right.T)
    sigma = svdvals(first @ second.T)
    rounding = len(sigma) * np.finfo(np.float64).eps * np.linalg.norm(first) * np.linalg.norm(second)
    return np.where(sigma > rounding, sigma, 0.0)


def rank_metrics(sigma: np.ndarray, rows: int, columns: int) -> RankMetrics:
    """Return size and ranks from the singular values (descending) of a ``rows`` x ``columns`` matrix.

    With p = sigma / sum(sigma) and q = sigma^2 / sum(sigma^2): entropy rank exp(-sum p ln p) (Roy & Vetterli,
    EUSIPCO 2007), energy entropy rank the same of q, stable rank sum(sigma^2) / sigma_1^2, participation
    ratio 1 / sum(q^2), eX_energy and eX_nuclear the fewest leading values that hold X % of q and of p.
    Numerical rank counts sigma > sigma_1 max(m, n) eps with the eps of float32, the precision of the data.
    The condition number is sigma_1 over the smallest of the values given, NaN where that one is below 1e-7
    sigma_1, the precision of the data. That of a square matrix is mostly noise: already the smallest value of
    iid entries is about sigma_1 / 4 n, and moves with every draw.
    """
    if not sigma.any():
        zeros = dict.fromkeys((field.name for field in fields(RankMetrics)), 0.0)
        return RankMetrics(**zeros | {"condition_number": float("nan")})
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
        nuclear_spectral_ratio=float(1 / nuclear[0]),
        condition_number=float(sigma[0] / sigma[-1]) if sigma[-1] > UNDEFINED * sigma[0] else float("nan"),
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation of two samples (n,), ties averaged; NaN where one is constant."""
    ranks = rankdata(first), rankdata(second)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Return singular values from Gram eigenvalues, both descending; 0 for those lost in rounding."""
    return np.sqrt(np.where(eigenvalues > UNDEFINED**2 * eigenvalues[0], eigenvalues, 0.0))


def _tall(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix or its transpose, whichever has the more rows."""
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def _row_blocks(tall: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of a matrix in float64, a block at a time: an embedding need not be copied whole."""
    for start in range(0, len(tall), BLOCK_ROWS):
        yield tall[start : start + BLOCK_ROWS].astype(np.float64, copy=False)


def _gram(tall: np.ndarray) -> np.ndarray:
    """Return tall^T tall in column order, which LAPACK overwrites without a copy (it is symmetric)."""
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for rows in _row_blocks(tall):
        gram += rows.T @ rows
    return gram.T


def product(tall: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return tall @ vectors in float64."""
    return np.concatenate([rows @ vectors for rows in _row_blocks(tall)])


def transposed_product(tall: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return tall^T @ vectors in float64."""
    product, start = np.zeros((tall.shape[1], vectors.shape[1])), 0
    for rows in _row_blocks(tall):
        product += rows.T @ vectors[start : start + len(rows)]
        start += len(rows)
    return product


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


def leading_eigenvectors(gram: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
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


def _other_side(tall: np.ndarray, vectors: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the singular vectors of the longer side, zero where sigma is lost in rounding."""
    return unit_columns(product(tall, vectors), UNDEFINED * sigma[0])


def unit_columns(vectors: np.ndarray, smallest: float) -> np.ndarray:
    """Return columns scaled to length 1, those not longer than ``smallest`` to 0."""
    lengths = np.linalg.norm(vectors, axis=0)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > smallest)


def _entropy_rank(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def _fewest(shares: np.ndarray, wanted: float) -> float:
    """Return the fewest leading shares that add up to ``wanted``, forgiving the rounding of the sum."""
    return float(np.searchsorted(np.cumsum(shares), wanted - 1e-12) + 1)


def _triangle(matrix: np.ndarray) -> np.ndarray:
    """Return R of Q R = matrix (m, r), in float64: (min(m, r), r)."""
    own = np.array(matrix, dtype=np.float64, order="F")  # LAPACK's order, a copy: it is overwritten
    return np.asarray(qr(own, mode="raw", overwrite_a=True, check_finite=False)[1])
