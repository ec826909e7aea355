"""Spectra, ranks, angles and intruders against NumPy, SciPy and closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from rankdrift.analysis import linalg

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
    np.testing.assert_allclose(
        linalg.singular_values(matrix), np.linalg.svd(matrix, compute_uv=False), rtol=1e-12
    )


def test_small_singular_values_of_float32_data_are_exact() -> None:
    sigma = np.logspace(0, -4, 32)
    matrix = with_spectrum(sigma, 60, 32).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(linalg.singular_values(matrix), exact, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("top", [None, 5])
def test_system_is_numpys_up_to_sign(shape: tuple[int, int], top: int | None) -> None:
    matrix = gaussian(*shape)
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    kept = min(top or min(shape), min(shape))
    system = linalg.singular_system(matrix, top)
    np.testing.assert_allclose(system.sigma, sigma, rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(system.left * left[:, :kept], axis=0)), 1, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(system.right * right[:kept].T, axis=0)), 1, rtol=1e-9)
    signs = np.sum(system.left * (matrix @ system.right), axis=0)
    np.testing.assert_allclose(signs, sigma[:kept], rtol=1e-9)


@pytest.mark.parametrize("top", [None, 4])
def test_equal_singular_values_still_give_orthonormal_vectors(top: int | None) -> None:
    rotation = np.linalg.qr(gaussian(30, 30))[0]
    system = linalg.singular_system(rotation, top)
    for vectors in (system.left, system.right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-12)


def test_vectors_of_the_longer_side_are_zero_where_sigma_is() -> None:
    system = linalg.singular_system(with_spectrum(np.array([2.0, 1.0]), 12, 6))
    np.testing.assert_allclose(np.linalg.norm(system.left, axis=0), [1, 1, 0, 0, 0, 0], atol=1e-12)


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
    assert metrics.numerical_rank == 18  # 40 eps = 4.8e-6 lies between 2^-17 and 2^-18


def test_the_zero_matrix_has_neither_size_nor_rank() -> None:
    assert set(dataclasses.astuple(linalg.rank_metrics(np.zeros(5), 5, 9))) == {0.0}


@pytest.mark.parametrize(("first", "second"), [(4, 4), (3, 6), (6, 3)])
def test_principal_angles_are_those_of_scipy(first: int, second: int) -> None:
    one, other = gaussian(40, first, seed=3), gaussian(40, second, seed=4)
    expected = scipy.linalg.subspace_angles(one, other)[::-1]
    np.testing.assert_allclose(linalg.principal_angles(one, other), expected, rtol=1e-10)


def test_angles_ignore_signs_and_rotations_and_resolve_small_tilts() -> None:
    basis = np.linalg.qr(gaussian(30, 6))[0]
    rotated = basis[:, :5] @ np.linalg.qr(gaussian(5, 5, seed=9))[0]
    assert linalg.principal_angles(basis[:, :5], -rotated).max() < 1e-14
    tilted = basis[:, :5].copy()
    tilted[:, 4] = np.cos(1e-9) * basis[:, 4] + np.sin(1e-9) * basis[:, 5]
    assert linalg.principal_angles(basis[:, :5], tilted)[-1] == pytest.approx(1e-9, rel=1e-4)


def test_overlap_of_random_subspaces_is_k_over_d() -> None:
    # E ||Q1^T Q2||_F^2 / k = k / d (arXiv 2106.09685, section 7.2)
    draws = [
        linalg.subspace_overlap(
            linalg.principal_angles(gaussian(60, 6, seed=s), gaussian(60, 6, seed=s + 1000))
        )
        for s in range(200)
    ]
    assert np.mean(draws) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_intruders_follow_definition_3_1(threshold: float) -> None:
    # from arXiv 2410.21228, definition 3.1: y_j is an intruder iff max_i |cos(y_j, x_i)| < threshold
    base = gaussian(200, 150)
    spike = np.outer(gaussian(200, seed=1), gaussian(150, seed=2)) / 5
    vectors, sigma, _ = np.linalg.svd(base + spike + 0.2 * gaussian(200, 150, seed=3), full_matrices=False)
    against = np.linalg.svd(base, full_matrices=False)[0]
    flags = [
        max(abs(float(against[:, i] @ vectors[:, j])) for i in range(150)) < threshold for j in range(10)
    ]
    share = sum(s**2 for s, flag in zip(sigma, flags, strict=False) if flag) / sum(sigma[:10] ** 2)
    found = linalg.intruders(linalg.best_cosines(vectors[:, :10], against), sigma[:10], threshold)
    assert 0 < sum(flags) <= 10
    assert found == linalg.Intruders(count=sum(flags), energy=pytest.approx(share))


def test_intruder_energy_of_the_zero_matrix_is_undefined() -> None:
    assert np.isnan(linalg.intruders(np.ones(3), np.zeros(3), 0.5).energy)


def test_spearman_is_that_of_scipy_and_undefined_for_a_constant() -> None:
    first, second = gaussian(50), np.round(gaussian(50, seed=5))
    assert linalg.spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert np.isnan(linalg.spearman(first, np.zeros(50)))
