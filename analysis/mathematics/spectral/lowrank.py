"""The singular system of W = W0 + L R without forming W, for the few columns of L that an adapter has.

In the basis of W0's singular vectors of the shorter side, V, the Gram matrix of W is diagonal plus rank 2r:

    V^T W^T W V = D + G H^T + H G^T + H (L^T L) H^T,   D = sigma^2 of W0, G = V^T W0^T L, H = V^T R^T.

A product with it costs O(n r) in place of O(m n), and the number of its eigenvalues above any value is known
exactly from a 2r x 2r matrix (Haynsworth 1968). So leading vectors found by Lanczos iterations can be proved
to be the leading ones, and all of them, or are computed densely. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from rankdrift.analysis.mathematics.spectral import decomposition, linalg
from rankdrift.analysis.mathematics.spectral.linalg import HalfSystem, SingularSystem

TOLERANCE = 1e-6
"""Largest proven sine of the angle between a vector found by iterations and the exact one."""
KRYLOV = 48
"""Vectors an iteration keeps beyond those wanted."""
RESTARTS = 60
"""Restarts after which the dense computation is the cheaper one."""


@dataclass(frozen=True)
class LowRankSum:
    """W = W0 + left @ right beside the singular system of W0."""

    base: HalfSystem
    left: np.ndarray
    """(m, r), float64, the scale included."""
    right: np.ndarray
    """(r, n), float64."""

    @cached_property
    def images(self) -> np.ndarray:
        """G (k, r): products of the base's vectors, times their singular values, with the longer factor."""
        tall, longer, _ = self._tall
        return self.base.vectors.T @ linalg.transposed_product(tall, longer)

    @cached_property
    def shares(self) -> np.ndarray:
        """H (k, r): components of the shorter factor along the base's vectors."""
        return self.base.vectors.T @ self._tall[2]

    @cached_property
    def core(self) -> np.ndarray:
        """L^T L (r, r) of the longer factor."""
        longer = self._tall[1]
        return longer.T @ longer

    @property
    def _tall(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W0 with its longer side first, the factor of that side (m, r) and of the other one (n, r)."""
        if self.base.wide:
            return self.base.matrix.T, self.right.T, self.left
        return self.base.matrix, self.left, self.right.T

    def singular_system(self, top: int) -> SingularSystem:
        """Return all singular values of W and its ``top`` leading vectors."""
        eigenvalues, coordinates = decomposition.leading_eigenvectors(
            self.gram(), min(top, len(self.base.sigma))
        )
        return self.system(linalg.roots(eigenvalues), coordinates)

    def leading_system(self, top: int) -> SingularSystem:
        """Return the ``top`` leading singular values of W and their vectors: of the values, these alone."""
        found = self.iterated(top) if top + KRYLOV < len(self.base.sigma) else None
        if found is None:
            found = decomposition.leading_eigenvectors(self.gram(), min(top, len(self.base.sigma)))
        return self.system(linalg.roots(found[0][:top]), found[1])

    def gram(self) -> np.ndarray:
        """Return V^T W^T W V (k, k), in column order."""
        mixed = self.images @ self.shares.T
        gram = mixed + mixed.T + self.shares @ self.core @ self.shares.T
        gram[np.diag_indices(len(gram))] += np.square(self.base.sigma)
        return gram.T

    def iterated(self, top: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the leading eigenvalues, descending, and eigenvectors (k, top), or None if not proven."""
        order = len(self.base.sigma)
        operator = LinearOperator((order, order), matvec=self.product, dtype=np.float64)
        start = np.ones(order)
        try:
            values, vectors = eigsh(
                operator, top, which="LA", v0=start, ncv=top + KRYLOV, maxiter=RESTARTS, tol=1e-14
            )
        except ArpackError:
            return None
        values, vectors = values[::-1], vectors[:, ::-1]
        return (values, vectors) if self.proves(values, vectors) else None

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """Return V^T W^T W V times vectors (k,) or (k, t)."""
        shares, images = self.shares.T @ vectors, self.images.T @ vectors
        own = (np.square(self.base.sigma) * vectors.T).T
        return own + self.images @ shares + self.shares @ (images + self.core @ shares)

    def proves(self, values: np.ndarray, vectors: np.ndarray) -> bool:
        """Return whether these are the leading eigenpairs, each vector to within ``TOLERANCE``.

        An eigenvector is within residual / gap of the approximate one (Davis & Kahan 1970), the gap being
        that to all other eigenvalues: among the leading ones by their own distances, to the rest because
        exactly ``len(values)`` eigenvalues lie above the last one less the gap wanted. The residual is that
        of the iteration and of the base's own decomposition.
        """
        residual = float(np.linalg.norm(self.product(vectors) - vectors * values, ord=2))
        residual += len(self.base.sigma) * float(np.finfo(np.float64).eps) * float(values[0])
        wanted = residual / TOLERANCE
        apart = len(values) == 1 or float(np.min(-np.diff(values))) > wanted + 2 * residual
        return apart and self.count_above(float(values[-1]) - wanted - residual) == len(values)

    def count_above(self, value: float) -> int:
        """Return how many eigenvalues of V^T W^T W V exceed a value that is no square of W0's sigma.

        By the inertia of [[D - x, Z], [Z^T, -C^-1]] with Z = [G H] and C = [[0, I], [I, L^T L]], whose
        inverse has r positive and r negative eigenvalues.
        """
        rank = len(self.core)
        both = np.hstack([self.images, self.shares])
        identity = np.eye(rank)
        inverse = np.block([[-self.core, identity], [identity, np.zeros((rank, rank))]])
        shifted = np.square(self.base.sigma) - value
        schur = -inverse - both.T @ (both / shifted[:, None])
        return int(np.count_nonzero(shifted > 0) + np.count_nonzero(np.linalg.eigvalsh(schur) > 0) - rank)

    def system(self, sigma: np.ndarray, coordinates: np.ndarray) -> SingularSystem:
        """Return the vectors of both sides by coordinates (k, t) of the shorter side's in the base's."""
        tall, longer, shorter = self._tall
        vectors = self.base.vectors @ coordinates
        images = linalg.product(tall, vectors) + longer @ (shorter.T @ vectors)
        images = linalg.unit_columns(images, linalg.UNDEFINED * sigma[0])
        return SingularSystem(sigma, *((vectors, images) if self.base.wide else (images, vectors)))
