"""The path of a GPU, on the CPU's tensors, against LAPACK's, and what a GPU is given of a matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankdrift.analysis.mathematics.spectral import decomposition, linalg
from rankdrift.analysis.mathematics.spectral.decomposition import DenseSum, DeviceSum

CPU = torch.device("cpu")
SHAPES = [(60, 40), (40, 60), (50, 50), (2, 7)]


def drawn(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_device_gives_the_half_system_that_lapack_gives(shape: tuple[int, int], dtype: type) -> None:
    matrix = drawn(shape, 0).astype(dtype)
    expected = linalg.half_system(matrix)
    found = decomposition.device_half_system(matrix, CPU)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * expected.vectors, axis=0)), 1, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_device_gives_the_sum_of_base_and_change_as_a_dense_svd_does(shape: tuple[int, int]) -> None:
    base, change, top = linalg.half_system(drawn(shape, 0).astype(np.float32)), 0.1 * drawn(shape, 1), 1
    found = DeviceSum(base, change, CPU)
    left, sigma, right = np.linalg.svd(base.matrix + change, full_matrices=False)
    np.testing.assert_allclose(found.update_values(), np.linalg.svd(change, compute_uv=False), rtol=1e-7)
    system = found.singular_system(top)
    np.testing.assert_allclose(system.sigma, sigma, rtol=1e-7)
    np.testing.assert_allclose(np.abs(system.left.T @ left[:, :top]), np.eye(top), atol=1e-9)
    np.testing.assert_allclose(np.abs(system.right.T @ right[:top].T), np.eye(top), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "tolerance"), [(DenseSum, 1e-5), (DeviceSum, 1e-9)])
def test_changes_are_those_along_the_vectors_of_a_dense_svd(
    shape: tuple[int, int], kind: type, tolerance: float
) -> None:
    """u_i^T dW v_i from NumPy's SVD of W0: a pair of vectors has one sign, which drops out."""
    matrix, change = drawn(shape, 0).astype(np.float32), drawn(shape, 1)
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    settings = (CPU,) if kind is DeviceSum else ()
    found = kind(linalg.half_system(matrix), change, *settings).changes()
    np.testing.assert_allclose(found, np.diag(left.T @ change @ right.T), atol=tolerance * 20)


@pytest.mark.parametrize("kind", [DenseSum, DeviceSum])
def test_values_lost_in_rounding_change_nothing(kind: type) -> None:
    whole = linalg.half_system(drawn((5, 3), 0).astype(np.float32))
    base = replace(whole, sigma=whole.sigma[0] * np.array([1, 1e-6, 1e-8]))
    settings = (CPU,) if kind is DeviceSum else ()
    found = kind(base, drawn((5, 3), 1), *settings).changes()
    np.testing.assert_array_equal(found != 0, [True, True, False])


def test_each_matrix_is_brought_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    to = torch.Tensor.to

    def counted(self: torch.Tensor, *arguments: object) -> torch.Tensor:
        if torch.device("cpu") in arguments:
            copied.append((tuple(self.shape), self.dtype))
        return to(self, *arguments)

    base = linalg.half_system(drawn((9, 6), 0).astype(np.float32))
    monkeypatch.setattr(torch.Tensor, "to", counted)
    found = DeviceSum(base, drawn((9, 6), 1), CPU)
    found.update_values(), found.singular_system(2), found.changes()
    expected = [((9, 6), torch.float64), ((9, 6), torch.float32), ((6, 6), torch.float64)]
    assert copied == expected, "dW, W0 in its own format, W0's vectors"


def test_without_a_gpu_lapack_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    matrix, change = drawn((30, 20), 0), drawn((30, 20), 1)
    base = decomposition.half_system(matrix)
    np.testing.assert_array_equal(base.vectors, linalg.half_system(matrix).vectors)
    assert isinstance(decomposition.dense_sum(base, change), DenseSum)


def test_with_a_gpu_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = decomposition.dense_sum(linalg.half_system(drawn((3, 2), 0)), drawn((3, 2), 1))
    assert isinstance(found, DeviceSum)
    assert found.device.type == "cuda"
