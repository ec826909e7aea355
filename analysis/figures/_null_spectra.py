"""Singular values of random matrices, drawn exactly without forming them: an update without structure.

A Gaussian m x n matrix has the singular values of a bidiagonal matrix of chi variables (Dumitriu &
Edelman, Matrix models for beta ensembles, 2002, arXiv math-ph/0206043): O(n^2), not O(m n^2). Products B A
are drawn by ``analysis/spectral/nulls.py``.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from rankdrift.analysis.mathematics.spectral.nulls import product_spectra


def noise_spectrum(
    rows: int, columns: int, rank: int, norm: float, draws: int = 8, seed: int = 0
) -> np.ndarray:
    """Return the descending singular values of noise with Frobenius norm ``norm``, one row a draw.

    ``rank`` = 0 is iid Gaussian noise of that shape, (draws, min(rows, columns)); otherwise Gaussian B A of
    that rank, (draws, min(rows, columns, rank)).
    """
    if rank > 0:
        sigma = np.stack(list(itertools.islice(product_spectra(rows, columns, rank, seed), draws)))
    else:
        generator, (small, large) = np.random.default_rng(seed), sorted((rows, columns))
        sigma = np.stack([_gaussian(small, large, generator) for _ in range(draws)])
    return norm * sigma / np.linalg.norm(sigma, axis=1, keepdims=True)


def _gaussian(small: int, large: int, generator: np.random.Generator) -> np.ndarray:
    """Return the singular values of a large x small Gaussian matrix: those of a bidiagonal chi matrix."""
    diagonal = np.sqrt(generator.chisquare(large - np.arange(small)))
    below = np.sqrt(generator.chisquare(np.arange(small - 1, 0, -1)))
    squares = diagonal**2
    squares[1:] += below**2
    eigenvalues = eigvalsh_tridiagonal(squares, below * diagonal[:-1])
    return np.sqrt(np.clip(eigenvalues, 0, None))[::-1]
