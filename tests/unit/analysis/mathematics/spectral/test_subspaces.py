"""Angles, drift and bounds of singular subspaces against SciPy, closed forms and Wedin's theorem itself."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from rankdrift.analysis.mathematics.spectral import linalg, subspaces


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("first", "second"), [(4, 4), (3, 6), (6, 3)])
def test_principal_angles_are_those_of_scipy(first: int, second: int) -> None:
    one, other = gaussian(40, first, seed=3), gaussian(40, second, seed=4)
    expected = scipy.linalg.subspace_angles(one, other)[::-1]
    np.testing.assert_allclose(subspaces.principal_angles(one, other), expected, rtol=1e-10)


def test_angles_ignore_signs_and_rotations_and_resolve_small_tilts() -> None:
    basis = np.linalg.qr(gaussian(30, 6))[0]
    rotated = basis[:, :5] @ np.linalg.qr(gaussian(5, 5, seed=9))[0]
    assert subspaces.principal_angles(basis[:, :5], -rotated).max() < 1e-14
    tilted = basis[:, :5].copy()
    tilted[:, 4] = np.cos(1e-9) * basis[:, 4] + np.sin(1e-9) * basis[:, 5]
    assert subspaces.principal_angles(basis[:, :5], tilted)[-1] == pytest.approx(1e-9, rel=1e-4)


def test_overlap_of_random_subspaces_is_k_over_d() -> None:
    # E ||Q1^T Q2||_F^2 / k = k / d (arXiv 2106.09685, section 7.2)
    pairs = [(gaussian(60, 6, seed=s), gaussian(60, 6, seed=s + 1000)) for s in range(200)]
    draws = [subspaces.subspace_overlap(subspaces.principal_angles(*pair)) for pair in pairs]
    assert np.mean(draws) == pytest.approx(0.1, rel=0.05)


def test_drift_is_the_distance_of_the_projectors() -> None:
    first, second = (np.linalg.qr(gaussian(50, 7, seed=seed))[0] for seed in (1, 2))
    distance = np.linalg.norm(first @ first.T - second @ second.T) / np.sqrt(2 * 7)
    angles = subspaces.principal_angles(first, second)
    assert subspaces.vector_drift(angles) == pytest.approx(distance, rel=1e-12)
    assert subspaces.vector_drift(subspaces.principal_angles(first, -first[:, ::-1])) < 1e-14
    apart = np.eye(50)
    assert subspaces.vector_drift(subspaces.principal_angles(apart[:, :7], apart[:, 7:14])) == 1


def test_the_naive_drift_is_seven_tenths_where_nothing_moved() -> None:
    """By random signs alone, and where one new vector at the front shifts all others by a place."""
    vectors = np.linalg.qr(gaussian(576, 33, seed=1))[0]
    before, after = vectors[:, 1:], vectors[:, :32]
    signs = [np.random.default_rng(seed).choice([-1, 1], 32) for seed in range(20)]
    drifts = [subspaces.naive_drift(after, after * flips) for flips in signs]
    assert np.mean(drifts) == pytest.approx(0.7, abs=0.03)
    assert subspaces.naive_drift(before, after) == pytest.approx(0.707, abs=1e-3)
    angles = subspaces.principal_angles(before, after)
    assert subspaces.subspace_overlap(angles) == pytest.approx(0.97, abs=0.002)
    assert subspaces.vector_drift(angles) == pytest.approx(32**-0.5)


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (3, 0.0), (5, 2.0)])
def test_the_gap_behind_the_last_value_is_that_value(k: int, expected: float) -> None:
    assert subspaces.spectral_gap(np.array([5.0, 4, 3, 3, 2]), k) == expected


@pytest.mark.parametrize("size", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_no_subspace_turns_further_than_wedins_theorem_allows(size: float, k: int) -> None:
    bounds = []
    for seed in range(20):
        base = gaussian(30, 20, seed=seed) * np.linspace(3, 0.1, 20)
        update = size * gaussian(30, 20, seed=seed + 100) / 10
        (u0, s0, v0), (u1, s1, v1) = (np.linalg.svd(w, full_matrices=False) for w in (base, base + update))
        bounds.append(subspaces.wedin_bound(s0, s1, np.linalg.norm(update, 2), k))
        for one, other in ((u0, u1), (v0.T, v1.T)):
            sine = np.sin(scipy.linalg.subspace_angles(one[:, :k], other[:, :k]).max())
            assert sine <= bounds[-1] + 1e-12
    assert 0 < min(bounds) < 1 or size == 2.0


def test_vectors_of_equal_values_rotate_freely_and_their_space_does_not() -> None:
    sigma = np.r_[np.full(6, 5.0), np.linspace(1, 0.1, 54)]
    left, right = np.linalg.qr(gaussian(90, 60, seed=1))[0], np.linalg.qr(gaussian(60, 60, seed=2))[0]
    base = (left * sigma) @ right.T
    tuned = base + 1e-6 * gaussian(90, 60, seed=3)
    old, new = linalg.singular_system(base, 7), linalg.singular_system(tuned, 7)
    assert subspaces.principal_angles(old.right[:, :6], new.right[:, :6]).max() < 1e-5
    update = float(np.linalg.norm(tuned - base, 2))
    assert subspaces.wedin_bound(old.sigma, new.sigma, update, 6) < 1e-5
    # within the block the gap says that nothing can be said
    assert subspaces.spectral_gap(old.sigma, 3) < update
    assert subspaces.wedin_bound(old.sigma, new.sigma, update, 3) > 0.5


def test_wedins_bound_is_attained_by_a_rotation_of_two_vectors() -> None:
    # in the plane, W = R(t) diag(2, 1): ||dW|| and the separation are known, the bound must hold tightly
    angle = 1e-4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    base = np.diag([2.0, 1.0])
    update = turn @ base @ turn.T - base
    bound = subspaces.wedin_bound(np.array([2.0, 1.0]), np.array([2.0, 1.0]), np.linalg.norm(update, 2), 1)
    assert bound == pytest.approx(np.sin(angle), rel=1e-3)


def test_the_separation_is_between_a_value_of_one_matrix_and_one_of_the_other() -> None:
    base, tuned = np.array([5.0, 3.0]), np.array([4.0, 2.0])  # 4 - 3 and 5 - 2, not 5 - 3 or 4 - 2
    assert subspaces.wedin_bound(base, tuned, 1.5, 1) == 0.5
    assert subspaces.wedin_bound(tuned, base, 1.5, 1) == 0.5
    assert subspaces.wedin_bound(base, tuned, 2.0, 2) == pytest.approx(2 / 3)


def test_a_gap_above_the_update_is_not_enough_to_keep_vectors_in_place() -> None:
    """One value falls and the next one rises by ||dW||: they pass each other unless the gap is twice that."""
    base, update = np.diag([2.0, 1.0]), np.diag([-0.9, 0.9])
    left, _, _ = np.linalg.svd(base + update)
    size = float(np.linalg.norm(update, 2))
    assert abs(left[0, 0]) < 1e-12  # the first vector is the former second one
    assert subspaces.spectral_gap(np.array([2.0, 1.0]), 1) > size  # the naive criterion
    assert not subspaces.keeps_its_place(np.array([2.0, 1.0]), size, 1)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_vectors_that_keep_their_place_are_bounded(k: int) -> None:
    kept = []
    for seed in range(20):
        base = gaussian(9, 6, seed=seed) * np.geomspace(3, 0.1, 6)
        update = gaussian(9, 6, seed=seed + 50)
        s0 = np.linalg.svd(base, compute_uv=False)
        update *= 0.49 * subspaces.spectral_gap(s0, k) / np.linalg.norm(update, 2)
        size = float(np.linalg.norm(update, 2))
        kept.append(subspaces.keeps_its_place(s0, size, k))
        s1 = np.linalg.svd(base + update, compute_uv=False)
        assert subspaces.wedin_bound(s0, s1, size, k) < 1
    assert all(kept)


def test_without_separation_nothing_is_bounded() -> None:
    assert subspaces.wedin_bound(np.ones(3), np.ones(3), 0.1, 2) == 1.0
