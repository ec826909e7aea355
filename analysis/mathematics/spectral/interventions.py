"""Edits of a tuned matrix that ask what its intruder dimensions cause, beside controls of equal strength.

An intruder with singular value s is scaled: W' = W + (strength - 1) s u v^T (Shuttleworth et al., arXiv
2410.21228, section 5), strength 0 removing it. That forgetting falls then says little by itself: whatever
moves a model towards its base may do as much. So the same is done to vectors that are no intruders, to random
directions, and to the update as a whole, shrunk by an edit of the same norm. An intruder is a vector of W, in
part the base's own: W' may well lie further from W0 than W does, so that the update scaled to the norm which
is left is no shrinkage; it stands beside the others for that norm's sake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankdrift.analysis.mathematics.spectral.linalg import SingularSystem

ARMS = {
    "intruders": "the intruders' singular values are scaled by the strength",
    "neighbours": "control: as many vectors that are no intruders, next to them by size, are scaled alike",
    "random": "control: random directions are taken away, with an edit of the same Frobenius norm",
    "shrunk": "control: all of dW is shrunk, by an edit of the same Frobenius norm (to 0 if it is less)",
    "rescaled": "control: all of dW is scaled, to the norm of the update that the intruders' edit leaves",
}


@dataclass(frozen=True)
class Edit:
    """W' = W0 + scale dW + left @ right, of one matrix."""

    scale: float
    left: np.ndarray
    """(rows, j), float64."""
    right: np.ndarray
    """(j, columns), float64."""

    def tuned(self, base: np.ndarray, update: np.ndarray) -> np.ndarray:
        """Return W' (rows, columns), float64, of W0 and dW."""
        return base + self.scale * update + self.left @ self.right

    @property
    def vectors(self) -> int:
        """Singular vectors that are edited one by one."""
        return self.left.shape[1]


def intruders_of(cosines: np.ndarray, threshold: float, top: int, first_only: bool) -> list[int]:
    """Return the indices of the intruders among the ``top`` leading vectors, or of the largest alone."""
    found = [int(index) for index in np.flatnonzero(cosines[:top] < threshold)]
    return found[:1] if first_only else found


def neighbours_of(chosen: Sequence[int], cosines: np.ndarray, threshold: float) -> list[int]:
    """Return for each chosen vector the nearest one, by index, that is no intruder; none is taken twice.

    There are fewer where almost all vectors given are intruders.
    """
    free = [int(index) for index in np.flatnonzero(cosines >= threshold)]
    found = []
    for index in chosen:
        if free:
            nearest = min(free, key=lambda other: (abs(other - index), other))
            free.remove(nearest)
            found.append(nearest)
    return found


def edits(
    system: SingularSystem,
    update: np.ndarray,
    chosen: Sequence[int],
    neighbours: Sequence[int],
    strength: float,
    generator: np.random.Generator,
) -> dict[str, Edit]:
    """Return the edit of one matrix for each of ``ARMS``.

    Parameters
    ----------
    system
        Leading singular vectors and values of W.
    update
        dW (rows, columns).
    chosen, neighbours
        Which of the vectors are scaled, and which instead in the control.
    strength
        What their singular values are multiplied with: 1 changes nothing, 0 removes them.
    generator
        Draws the random directions.

    """
    scaled = _scaled(system, chosen, strength)
    removed = float(np.linalg.norm(system.sigma[list(chosen)])) * (1 - strength)
    left_norm = float(np.linalg.norm(update + scaled.left @ scaled.right))
    norm = float(np.linalg.norm(update))
    return {
        "intruders": scaled,
        "neighbours": _scaled(system, neighbours, strength),
        "random": _random(update.shape, len(chosen), removed, generator),
        "shrunk": Edit(max(0.0, 1 - removed / norm), *_nothing(update.shape)),
        "rescaled": Edit(left_norm / norm, *_nothing(update.shape)),
    }


def _scaled(system: SingularSystem, indices: Sequence[int], strength: float) -> Edit:
    columns = list(indices)
    weights = (strength - 1) * system.sigma[columns]
    return Edit(
        1.0,
        left=system.left[:, columns].astype(np.float64) * weights,
        right=system.right[:, columns].T.astype(np.float64),
    )


def _random(shape: tuple[int, ...], vectors: int, norm: float, generator: np.random.Generator) -> Edit:
    rows, columns = shape
    left, _ = np.linalg.qr(generator.standard_normal((rows, vectors)))
    right, _ = np.linalg.qr(generator.standard_normal((columns, vectors)))
    return Edit(1.0, left=-left * (norm / np.sqrt(vectors)), right=right.T)


def _nothing(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((shape[0], 0)), np.zeros((0, shape[1]))
