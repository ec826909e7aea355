"""Singular values of random matrices, drawn exactly without forming them: an update without structure.

A Gaussian m x n matrix has the singular values of a bidiagonal matrix of chi variables (Dumitriu &
Edelman, Matrix models for beta ensembles, 2002, arXiv math-ph/0206043), and a product B A of inner size r
those of the product of two triangular r x r matrices (Bartlett 1933): O(n^2) and O(r^3), not O(m n^2).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal


def noise_spectrum(
    rows: int, columns: int, rank: int, norm: float, draws: int = 8, seed: int = 0
) -> np.ndarray:
    """Return the descending singular values of noise with Frobenius norm ``norm``, one row a draw.

    ``rank`` = 0 is iid Gaussian noise of that shape, (draws, min(rows, columns)); otherwise Gaussian B A of
    that rank, (draws, min(rows, columns, rank)).
    """
    generator = np.random.default_rng(seed)
    small, large = sorted((rows, columns))
    low_rank = 0 < rank < small
    sigma = np.stack(
        [
            _product(small, large, rank, generator) if low_rank else _gaussian(small, large, generator)
            for _ in range(draws)
        ]
    )
    return norm * sigma / np.linalg.norm(sigma, axis=1, keepdims=True)


def _gaussian(small: int, large: int, generator: np.random.Generator) -> np.ndarray:
    """Return the singular values of a large x small Gaussian matrix: those of a bidiagonal chi matrix."""
    diagonal = np.sqrt(generator.chisquare(large - np.arange(small)))
    below = np.sqrt(generator.chisquare(np.arange(small - 1, 0, -1)))
    squares = diagonal**2
    squares[1:] += below**2
    eigenvalues = eigvalsh_tridiagonal(squares, below * diagonal[:-1])
    return np.sqrt(np.clip(eigenvalues, 0, None))[::-1]


def _product(small: int, large: int, rank: int, generator: np.random.Generator) -> np.ndarray:
    """Return the singular values of B A, (large, rank) by (rank, small): those of R_B R_A^T, B = Q_B R_B."""
    left, right = _triangle(large, rank, generator), _triangle(small, rank, generator)
    return np.linalg.svd(left @ right.T, compute_uv=False)


def _triangle(length: int, rank: int, generator: np.random.Generator) -> np.ndarray:
    """Return R of the QR decomposition of a length x rank Gaussian matrix (Bartlett's decomposition)."""
    upper = np.triu(generator.standard_normal((rank, rank)), 1)
    return upper + np.diag(np.sqrt(generator.chisquare(length - np.arange(rank))))
