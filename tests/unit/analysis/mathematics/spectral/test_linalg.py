"""Spectra, ranks, angles and intruders against NumPy, SciPy and closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from rankdrift.analysis.mathematics.spectral import linalg

SHAPES = [(40, 24), (24, 40), (32, 32), (1, 9), (9, 1), (1, 1), (90, 70)]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_spectrum(sigma: np.ndarray, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    left = np.linalg.qr(gaussian(rows, len(sigma), seed=seed))[0]
    right = np.linalg.qr(gaussian(columns, len(sigma), seed=seed + 1))[0]
    return (left * sigma) @ right.T


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_numpy(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    dense = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(linalg.singular_values(matrix), dense, rtol=1e-12)


def test_small_singular_values_of_float32_data_are_exact() -> None:
    """A Gram matrix in float32 would lose those below 1e-4 of the largest."""
    matrix = with_spectrum(np.logspace(0, -6, 200), 300, 200).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    found = linalg.singular_values(matrix)
    np.testing.assert_allclose(found[exact > 1e-4], exact[exact > 1e-4], rtol=1e-7)
    np.testing.assert_allclose(found[exact > 1e-5], exact[exact > 1e-5], rtol=1e-5)
    counted = linalg.rank_metrics(found, 300, 200).numerical_rank
    assert counted == linalg.rank_metrics(exact, 300, 200).numerical_rank


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("top", [200, 5])
def test_system_is_numpys_up_to_sign(shape: tuple[int, int], top: int) -> None:
    matrix = gaussian(*shape)
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    kept = min(top, *shape)
    system = linalg.singular_system(matrix, top)
    np.testing.assert_allclose(system.sigma, sigma, rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(system.left * left[:, :kept], axis=0)), 1, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(system.right * right[:kept].T, axis=0)), 1, rtol=1e-9)
    signs = np.sum(system.left * (matrix @ system.right), axis=0)
    np.testing.assert_allclose(signs, sigma[:kept], rtol=1e-9)


@pytest.mark.parametrize("top", [30, 4])
def test_equal_singular_values_still_give_orthonormal_vectors(top: int) -> None:
    rotation = np.linalg.qr(gaussian(30, 30))[0]
    system = linalg.singular_system(rotation, top)
    for vectors in (system.left, system.right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-12)


def test_vectors_of_the_longer_side_are_zero_where_sigma_is() -> None:
    matrix = with_spectrum(np.array([2.0, 1.0]), 12, 6)
    system = linalg.singular_system(matrix, 6)
    np.testing.assert_allclose(np.linalg.norm(system.left, axis=0), [1, 1, 0, 0, 0, 0], atol=1e-12)
    assert (linalg.half_system(matrix).components(gaussian(12, 3), "left")[2:] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_half_a_system_says_what_the_whole_one_does(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    half = linalg.half_system(matrix)
    np.testing.assert_allclose(half.sigma, sigma, rtol=1e-12)
    for side, basis in (("left", left), ("right", right.T)):
        vectors = gaussian(len(basis), 3, seed=8)
        components = half.components(vectors, side)
        np.testing.assert_allclose(np.abs(components), np.abs(basis.T @ vectors), atol=1e-9)
        leading = getattr(half.leading(4), side)
        np.testing.assert_allclose(np.abs(np.sum(leading * basis[:, :4], axis=0)), 1, rtol=1e-9)


def test_more_rows_than_one_block_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = gaussian(50, 12).astype(np.float32)
    whole = linalg.half_system(matrix)
    monkeypatch.setattr(linalg, "BLOCK_ROWS", 16)
    cut = linalg.half_system(matrix)
    np.testing.assert_allclose(cut.sigma, whole.sigma, rtol=1e-13)
    found, expected = (half.components(gaussian(50, 2, seed=1), "left") for half in (cut, whole))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-12)
    np.testing.assert_allclose(linalg.singular_values(matrix), whole.sigma, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (120, 120)])
def test_values_that_rounding_hides_are_zero(shape: tuple[int, int], scale: float) -> None:
    """A dense update of a few rows, as of an embedding: its Gram matrix has further values of 1e-16."""
    matrix = np.zeros(shape)
    matrix[:20] = scale * gaussian(20, shape[1])
    sigma = linalg.singular_values(matrix)
    np.testing.assert_allclose(sigma[:20], np.linalg.svd(matrix, compute_uv=False)[:20], rtol=1e-12)
    assert not sigma[20:].any()
    assert linalg.rank_metrics(sigma, *shape).threshold_rank == 20
    for system in (linalg.half_system(matrix), linalg.singular_system(matrix, 5)):
        assert np.count_nonzero(system.sigma) == 20


def test_factors_of_rank_0_have_no_values() -> None:
    assert linalg.product_singular_values(np.zeros((5, 0)), np.zeros((0, 4))).shape == (0,)


def test_factors_that_cancel_leave_exact_zeros() -> None:
    # the update of an adapter at its own start, [B, -B][A; A]: exactly nothing, not 1e-16 of the factors
    left, right = gaussian(40, 4, seed=1), gaussian(4, 30, seed=2)
    found = linalg.product_singular_values(np.hstack([left, -left]), np.vstack([right, right]))
    assert found.tolist() == [0.0] * 8


@pytest.mark.parametrize(("rows", "columns", "rank"), [(50, 70, 4), (70, 50, 1), (20, 60, 33), (30, 30, 30)])
def test_product_spectrum_is_that_of_the_dense_product(rows: int, columns: int, rank: int) -> None:
    left, right = gaussian(rows, rank, seed=1), gaussian(rank, columns, seed=2)
    dense = np.linalg.svd(left @ right, compute_uv=False)[: min(rows, columns, rank)]
    found = linalg.product_singular_values(left.astype(np.float32), right.astype(np.float32))
    np.testing.assert_allclose(found, dense, rtol=1e-5)


@pytest.mark.parametrize("count", [10, 20, 60])
def test_every_rank_of_equal_singular_values_is_their_number(count: int) -> None:
    metrics = linalg.rank_metrics(np.full(count, 3.0), count, 80)
    for rank in ("threshold", "numerical", "entropy", "energy_entropy", "stable"):
        assert getattr(metrics, f"{rank}_rank") == pytest.approx(count)
    assert metrics.participation_ratio == pytest.approx(count)
    # 90 % of the count exactly, though nine tenths add up to less than 0.9 in binary
    assert metrics.e90_energy == metrics.e90_nuclear == count * 9 // 10
    assert metrics.e95_energy == metrics.e95_nuclear == math.ceil(count * 0.95)
    assert (metrics.norm, metrics.nuclear_norm) == (pytest.approx(3 * count**0.5), pytest.approx(3 * count))


def test_ninety_percent_of_the_energy_are_kept_by_so_many_values_and_no_fewer() -> None:
    matrix = gaussian(200, 150, seed=1)
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    kept = int(linalg.rank_metrics(linalg.singular_values(matrix), 200, 150).e90_energy)
    for count, enough in ((kept, True), (kept - 1, False)):
        rest = matrix - (left[:, :count] * sigma[:count]) @ right[:count]
        assert (np.linalg.norm(rest) ** 2 <= 0.1 * np.linalg.norm(matrix) ** 2) == enough


def test_ranks_of_a_geometric_spectrum_have_closed_forms() -> None:
    sigma = 0.5 ** np.arange(40)
    metrics = linalg.rank_metrics(sigma, 40, 40)
    # geometric shares (1 - x) x^i have entropy h(x) / (1 - x), h the binary entropy; x = 1/2 for p, 1/4 for q
    assert metrics.entropy_rank == pytest.approx(4, rel=1e-9)
    energy_entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / 0.75
    assert metrics.energy_entropy_rank == pytest.approx(np.exp(energy_entropy), rel=1e-9)
    assert metrics.stable_rank == pytest.approx(4 / 3)
    assert metrics.participation_ratio == pytest.approx((4 / 3) ** 2 / (16 / 15))
    assert (metrics.e90_energy, metrics.e95_energy) == (2, 3)  # 1 - 4^-k
    assert (metrics.e90_nuclear, metrics.e95_nuclear) == (4, 5)  # 1 - 2^-k
    assert metrics.threshold_rank == 17  # 2^-16 = 1.5e-5 is above 1e-5, 2^-17 is not
    assert metrics.nuclear_spectral_ratio == pytest.approx(2)
    assert np.isnan(metrics.condition_number)  # 2^39 is beyond the precision of the data
    assert linalg.rank_metrics(sigma[:20], 40, 20).condition_number == 2.0**19
    assert metrics.numerical_rank == 18  # 40 eps = 4.8e-6 lies between 2^-17 and 2^-18


def test_the_zero_matrix_has_neither_size_nor_rank() -> None:
    metrics = dataclasses.asdict(linalg.rank_metrics(np.zeros(5), 5, 9))
    assert np.isnan(metrics.pop("condition_number"))
    assert set(metrics.values()) == {0.0}


def test_spearman_is_that_of_scipy_and_undefined_for_a_constant() -> None:
    first, second = gaussian(50), np.round(gaussian(50, seed=5))
    assert linalg.spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert np.isnan(linalg.spearman(first, np.zeros(50)))
