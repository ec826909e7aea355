"""Decompositions of a model's matrices on the device there is: LAPACK on CPUs, cuSOLVER on a GPU.

The same float64 Gram matrix and eigenvalues either way, so the same digits up to rounding. Data-centre GPUs
multiply float64 at tensor-core speed, which makes a matrix of 2048 columns a matter of tenths of a second.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rankdrift.analysis.spectral import linalg
from rankdrift.analysis.spectral.linalg import HalfSystem, SingularSystem


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return all singular values of an (m, n) matrix, descending, float64."""
    if not torch.cuda.is_available():
        return linalg.singular_values(matrix)
    return device_singular_values(matrix, torch.device("cuda"))


def singular_system(matrix: np.ndarray, top: int) -> SingularSystem:
    """Return all singular values of an (m, n) matrix and its ``top`` leading vectors."""
    if not torch.cuda.is_available():
        return linalg.singular_system(matrix, top)
    system = device_half_system(matrix, torch.device("cuda"))
    return linalg.from_shorter_side(matrix, system.sigma, system.vectors[:, :top])


def half_system(matrix: np.ndarray) -> HalfSystem:
    """Return all singular values of an (m, n) matrix and all vectors of its shorter side."""
    if not torch.cuda.is_available():
        return linalg.half_system(matrix)
    return device_half_system(matrix, torch.device("cuda"))


def leading_eigenvectors(gram: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all eigenvalues, descending, and the leading eigenvectors (n, top); may overwrite ``gram``."""
    if not torch.cuda.is_available():
        return linalg.leading_eigenvectors(gram, top)
    values, vectors = _eigenvectors(torch.from_numpy(gram).cuda())
    return values, vectors[:, :top]


def device_singular_values(matrix: np.ndarray, device: torch.device) -> np.ndarray:
    """Return all singular values of an (m, n) matrix, computed on a device."""
    return linalg.roots(torch.linalg.eigvalsh(_gram(matrix, device)).flip(0).cpu().numpy())


def device_half_system(matrix: np.ndarray, device: torch.device) -> HalfSystem:
    """Return all singular values and all vectors of the shorter side, computed on a device."""
    values, vectors = _eigenvectors(_gram(matrix, device))
    return HalfSystem(matrix, linalg.roots(values), vectors)


def _eigenvectors(gram: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return all eigenvalues, descending, and eigenvectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).cpu().numpy(), vectors.flip(1).cpu().numpy()


def _gram(matrix: np.ndarray, device: torch.device) -> Tensor:
    """Return the Gram matrix of the shorter side, float64, on a device."""
    values = torch.from_numpy(np.ascontiguousarray(matrix)).to(device).double()
    return values @ values.T if matrix.shape[0] < matrix.shape[1] else values.T @ values
