"""Decompositions of a model's matrices on the device there is: LAPACK on CPUs, cuSOLVER on a GPU.

The same float64 Gram matrix and eigenvalues either way, so the same digits up to rounding. Data-centre GPUs
multiply float64 at tensor-core speed, which leaves the eigenvalues as what a matrix costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rankdrift.analysis.mathematics.spectral import linalg
from rankdrift.analysis.mathematics.spectral.linalg import HalfSystem, SingularSystem


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
    return values.cpu().numpy(), vectors[:, :top].cpu().numpy()


def dense_sum(base: HalfSystem, change: np.ndarray) -> DenseSum | DeviceSum:
    """Return W = W0 + dW of a dense dW (m, n), float64, on the device there is."""
    if not torch.cuda.is_available():
        return DenseSum(base, change)
    return DeviceSum(base, change, torch.device("cuda"))


@dataclass(frozen=True)
class DenseSum:
    """W = W0 + dW of a dense dW beside the singular system of W0."""

    base: HalfSystem
    change: np.ndarray
    """dW (m, n), float64."""

    def update_values(self) -> np.ndarray:
        """Return all singular values of dW, descending, float64."""
        return linalg.singular_values(self.change)

    def singular_system(self, top: int) -> SingularSystem:
        """Return all singular values of W and its ``top`` leading vectors."""
        return linalg.singular_system(self.base.matrix + self.change, top)

    def changes(self) -> np.ndarray:
        """Return u_i^T dW v_i (k,) of W0's singular vectors; 0 for values lost in rounding.

        With u_i = W0 v_i / sigma_i they are v_i^T (W0^T dW) v_i / sigma_i (or the same of the transposes),
        which needs no long vectors. Products are float32's, which is twice as fast, sums float64's.
        """
        start, change = self.base.matrix, self.change.astype(np.float32)
        product = start @ change.T if self.base.wide else start.T @ change
        vectors = self.base.vectors.astype(np.float32)
        return _over_sigma(np.einsum("ij,ij->j", vectors, product @ vectors, dtype=np.float64), self.base)


@dataclass(frozen=True)
class DeviceSum:
    """The same on a device, which W0 and dW are each copied to once, for all that is asked of them."""

    base: HalfSystem
    change: np.ndarray
    """dW (m, n), float64."""
    device: torch.device

    @cached_property
    def _start(self) -> Tensor:
        """W0, longer side first, in the format it has: half the bytes to copy and to keep."""
        return _tall(_placed(self.base.matrix, self.device))

    @cached_property
    def _change(self) -> Tensor:
        """DW, longer side first, float64."""
        return _tall(_placed(self.change, self.device))

    def update_values(self) -> np.ndarray:
        """Return all singular values of dW, descending, float64."""
        eigenvalues = torch.linalg.eigvalsh(self._change.T @ self._change)
        return linalg.roots(eigenvalues.flip(0).cpu().numpy())

    def singular_system(self, top: int) -> SingularSystem:
        """Return all singular values of W and its ``top`` leading vectors."""
        tuned = self._start + self._change
        values, vectors = _eigenvectors(tuned.T @ tuned)
        sigma, leading = linalg.roots(values.cpu().numpy()), vectors[:, :top]
        images = linalg.unit_columns((tuned @ leading).cpu().numpy(), linalg.UNDEFINED * sigma[0])
        shorter = leading.cpu().numpy()
        return SingularSystem(sigma, *((shorter, images) if self.base.wide else (images, shorter)))

    def changes(self) -> np.ndarray:
        """Return u_i^T dW v_i (k,) of W0's singular vectors, as ``DenseSum`` does, all in float64."""
        vectors = _placed(self.base.vectors, self.device)
        product = self._start.double().T @ self._change
        return _over_sigma((vectors * (product @ vectors)).sum(dim=0).cpu().numpy(), self.base)


def device_half_system(matrix: np.ndarray, device: torch.device) -> HalfSystem:
    """Return all singular values and all vectors of the shorter side, computed on a device."""
    tall = _tall(_placed(matrix, device).double())
    values, vectors = _eigenvectors(tall.T @ tall)
    return HalfSystem(matrix, linalg.roots(values.cpu().numpy()), vectors.cpu().numpy())


def _over_sigma(products: np.ndarray, base: HalfSystem) -> np.ndarray:
    """Return products (k,) over W0's singular values, 0 for those lost in rounding."""
    defined = base.sigma > linalg.UNDEFINED * base.sigma[0]
    return np.divide(products, base.sigma, out=np.zeros_like(products), where=defined)


def _placed(matrix: np.ndarray, device: torch.device) -> Tensor:
    """Return a matrix on a device, in the format it has."""
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(device)


def _tall(matrix: Tensor) -> Tensor:
    """Return the matrix or its transpose, whichever has the more rows."""
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues, descending, and eigenvectors of a symmetric matrix, where it is."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)
