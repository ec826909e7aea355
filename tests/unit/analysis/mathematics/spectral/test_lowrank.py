"""W0 + L R by its low rank against a dense SVD; proofs of iterations against what defies them."""

from __future__ import annotations

import numpy as np
import pytest

from rankdrift.analysis.mathematics.spectral import linalg, lowrank
from rankdrift.analysis.mathematics.spectral.lowrank import LowRankSum

SHAPES = [(150, 90), (90, 150), (120, 120)]


def gaussian(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-3, 0.05, 2.0])
def test_the_system_is_that_of_the_matrix_formed(shape: tuple[int, int], size: float) -> None:
    sums, dense = planted(shape, size)
    system = sums.singular_system(12)
    assert len(system.sigma) == min(shape)
    assert_same(system, dense, 12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-3, 0.05, 2.0])
def test_leading_vectors_are_proven_without_a_dense_computation(
    shape: tuple[int, int], size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums, dense = planted(shape, size)
    monkeypatch.setattr(LowRankSum, "gram", lambda self: pytest.fail("not proven"))
    assert_same(sums.leading_system(10), dense, 10)


@pytest.mark.parametrize("shape", SHAPES)
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
