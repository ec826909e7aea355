"""W0 + dW by its low rank, and by the path of a GPU on the CPU's tensors, against LAPACK's dense SVDs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankdrift.analysis.mathematics.spectral import decomposition, linalg, lowrank
from rankdrift.analysis.mathematics.spectral.decomposition import DenseSum, DeviceSum
from rankdrift.analysis.mathematics.spectral.lowrank import LowRankSum

CPU = torch.device("cpu")
SHAPES = [(60, 40), (40, 60), (50, 50), (2, 7)]


def gaussian(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_device_gives_the_half_system_that_lapack_gives(shape: tuple[int, int], dtype: type) -> None:
    matrix = gaussian(*shape, seed=0).astype(dtype)
    expected = linalg.half_system(matrix)
    found = decomposition.device_half_system(matrix, CPU)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * expected.vectors, axis=0)), 1, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_device_gives_the_sum_of_base_and_change_as_a_dense_svd_does(shape: tuple[int, int]) -> None:
    base, change, top = (
        linalg.half_system(gaussian(*shape, seed=0).astype(np.float32)),
        0.1 * gaussian(*shape, seed=1),
        1,
    )
    found = DeviceSum(base, change, CPU)
    left, sigma, right = np.linalg.svd(base.matrix + change, full_matrices=False)
    np.testing.assert_allclose(found.update_values(), np.linalg.svd(change, compute_uv=False), rtol=1e-7)
    system = found.singular_system(top)
    np.testing.assert_allclose(system.sigma, sigma, rtol=1e-7)
    np.testing.assert_allclose(np.abs(system.left.T @ left[:, :top]), np.eye(top), atol=1e-9)
    np.testing.assert_allclose(np.abs(system.right.T @ right[:top].T), np.eye(top), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "tolerance"), [(DenseSum, 1e-5), (DeviceSum, 1e-9)])
def test_changes_are_along_a_dense_svds_vectors(shape: tuple[int, int], kind: type, tolerance: float) -> None:
    """u_i^T dW v_i from NumPy's SVD of W0: a pair of vectors has one sign, which drops out."""
    matrix, change = gaussian(*shape, seed=0).astype(np.float32), gaussian(*shape, seed=1)
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    settings = (CPU,) if kind is DeviceSum else ()
    found = kind(linalg.half_system(matrix), change, *settings).changes()
    np.testing.assert_allclose(found, np.diag(left.T @ change @ right.T), atol=tolerance * 20)


@pytest.mark.parametrize("kind", [DenseSum, DeviceSum])
def test_values_lost_in_rounding_change_nothing(kind: type) -> None:
    whole = linalg.half_system(gaussian(5, 3, seed=0).astype(np.float32))
    base = replace(whole, sigma=whole.sigma[0] * np.array([1, 1e-6, 1e-8]))
    settings = (CPU,) if kind is DeviceSum else ()
    found = kind(base, gaussian(5, 3, seed=1), *settings).changes()
    np.testing.assert_array_equal(found != 0, [True, True, False])


def test_each_matrix_is_brought_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    to = torch.Tensor.to

    def counted(self: torch.Tensor, *arguments: object) -> torch.Tensor:
        if torch.device("cpu") in arguments:
            copied.append((tuple(self.shape), self.dtype))
        return to(self, *arguments)

    base = linalg.half_system(gaussian(9, 6, seed=0).astype(np.float32))
    monkeypatch.setattr(torch.Tensor, "to", counted)
    found = DeviceSum(base, gaussian(9, 6, seed=1), CPU)
    found.update_values(), found.singular_system(2), found.changes()
    expected = [((9, 6), torch.float64), ((9, 6), torch.float32), ((6, 6), torch.float64)]
    assert copied == expected, "dW, W0 in its own format, W0's vectors"


def test_without_a_gpu_lapack_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    matrix, change = gaussian(30, 20, seed=0), gaussian(30, 20, seed=1)
    base = decomposition.half_system(matrix)
    np.testing.assert_array_equal(base.vectors, linalg.half_system(matrix).vectors)
    assert isinstance(decomposition.dense_sum(base, change), DenseSum)


def test_with_a_gpu_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = decomposition.dense_sum(linalg.half_system(gaussian(3, 2, seed=0)), gaussian(3, 2, seed=1))
    assert isinstance(found, DeviceSum)
    assert found.device.type == "cuda"


LARGE = [(150, 90), (90, 150), (120, 120)]


def planted(shape: tuple[int, int], size: float, rank: int = 5) -> tuple[LowRankSum, np.ndarray]:
    """Return W0 + L R, with W0's values falling slowly, and the same matrix formed."""
    base = (gaussian(*shape, seed=1) * np.linspace(2, 0.5, shape[1])).astype(np.float32)
    left, right = size * gaussian(shape[0], rank, seed=2), gaussian(rank, shape[1], seed=3)
    return LowRankSum(linalg.half_system(base), left, right), base.astype(np.float64) + left @ right


def assert_same(system: linalg.SingularSystem, dense: np.ndarray, top: int) -> None:
    left, sigma, right = np.linalg.svd(dense, full_matrices=False)
    # eigenvalues of a Gram matrix carry an error of eps sigma_1^2
    squares = np.square(sigma[: len(system.sigma)])
    np.testing.assert_allclose(np.square(system.sigma), squares, rtol=1e-12, atol=1e-13 * squares[0])
    assert system.left.shape == (len(left), top)
    for found, basis in ((system.left, left), (system.right, right.T)):
        np.testing.assert_allclose(np.abs(np.sum(found * basis[:, :top], axis=0)), 1, rtol=1e-9)
    signs = np.sum(system.left * (dense @ system.right), axis=0)
    np.testing.assert_allclose(signs, sigma[:top], rtol=1e-9)


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("size", [1e-3, 0.05, 2.0])
def test_the_system_is_that_of_the_matrix_formed(shape: tuple[int, int], size: float) -> None:
    sums, dense = planted(shape, size)
    system = sums.singular_system(12)
    assert len(system.sigma) == min(shape)
    assert_same(system, dense, 12)


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("size", [1e-3, 0.05, 2.0])
def test_leading_vectors_are_proven_without_a_dense_computation(
    shape: tuple[int, int], size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums, dense = planted(shape, size)
    monkeypatch.setattr(LowRankSum, "gram", lambda self: pytest.fail("not proven"))
    assert_same(sums.leading_system(10), dense, 10)


@pytest.mark.parametrize("shape", LARGE)
def test_eigenvalues_are_counted_exactly(shape: tuple[int, int]) -> None:
    sums, dense = planted(shape, 0.3)
    squares = np.linalg.svd(dense, compute_uv=False) ** 2
    for value in (squares[:-1] + squares[1:]) / 2:
        assert sums.count_above(value) == np.count_nonzero(squares > value)


def test_an_iteration_that_misses_a_vector_is_not_believed() -> None:
    sums, _ = planted((150, 90), 0.3)
    values, vectors = np.linalg.eigh(sums.gram())
    values, vectors = values[::-1], vectors[:, ::-1]
    assert sums.proves(values[:6], vectors[:, :6])
    kept = [0, 1, 2, 4, 5, 6]  # eigenpairs without a residual, but not the leading ones
    assert not sums.proves(values[kept], vectors[:, kept])
    blurred = vectors[:, :6] + 1e-4 * gaussian(90, 6, seed=4)
    assert not sums.proves(values[:6], blurred)


def test_equal_values_have_no_vectors_to_prove() -> None:
    base = np.zeros((80, 70), dtype=np.float32)
    base[:70, :70] = np.diag(np.r_[np.full(8, 3.0), np.linspace(2, 1, 62)])
    sums = LowRankSum(linalg.half_system(base), np.zeros((80, 1)), np.zeros((1, 70)))
    assert sums.iterated(5) is None
    np.testing.assert_allclose(sums.leading_system(5).sigma, 3.0, rtol=1e-12)


def test_small_matrices_are_computed_densely() -> None:
    sums, dense = planted((40, 30), 0.1)
    assert min(40, 30) < 10 + lowrank.KRYLOV
    assert_same(sums.leading_system(10), dense, 10)
