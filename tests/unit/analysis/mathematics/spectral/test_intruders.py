"""Intruders against the definition and the published algorithm; edits of them against dense SVDs."""

from __future__ import annotations

import numpy as np
import pytest

from rankdrift.analysis.mathematics.spectral import interventions, intruders, linalg
from rankdrift.analysis.mathematics.spectral.linalg import SingularSystem

Pair = tuple[np.ndarray, np.ndarray]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_intruders_follow_definition_3_1(threshold: float) -> None:
    # from arXiv 2410.21228, definition 3.1: y_j is an intruder iff max_i |cos(y_j, x_i)| < threshold
    base = gaussian(200, 150)
    spike = np.outer(gaussian(200, seed=1), gaussian(150, seed=2)) / 5
    vectors, sigma, _ = np.linalg.svd(base + spike + 0.2 * gaussian(200, 150, seed=3), full_matrices=False)
    against = np.linalg.svd(base, full_matrices=False)[0]
    flags = [max(abs(against[:, i] @ vectors[:, j]) for i in range(150)) < threshold for j in range(10)]
    share = sum(s**2 for s, flag in zip(sigma, flags, strict=False) if flag) / sum(sigma[:10] ** 2)
    found = intruders.intruders(intruders.best_cosines(against.T @ vectors[:, :10]), sigma[:10], threshold)
    assert 0 < sum(flags) <= 10
    assert found == intruders.Intruders(count=sum(flags), energy=pytest.approx(share))


def test_intruder_energy_of_the_zero_matrix_is_undefined() -> None:
    assert np.isnan(intruders.intruders(np.ones(3), np.zeros(3), 0.5).energy)


def published_count(base: np.ndarray, tuned: np.ndarray, k: int, threshold: float) -> int:
    """The algorithm of the repository reeceshuttle/intruder-dimensions: float32 thin SVDs, left vectors."""
    old = np.linalg.svd(base.astype(np.float32), full_matrices=False)[0]
    new = np.linalg.svd(tuned.astype(np.float32), full_matrices=False)[0]
    return int((np.abs(new.T @ old).max(axis=1)[:k] < threshold).sum())


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (90, 90)])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
def test_counts_are_those_of_the_published_algorithm(shape: tuple[int, int], threshold: float) -> None:
    base = gaussian(*shape) @ np.diag(np.linspace(3, 0.3, shape[1]))
    update = gaussian(shape[0], 4, seed=1) @ gaussian(4, shape[1], seed=2)
    tuned = base + 0.8 * update + 0.3 * gaussian(*shape, seed=3)
    half = linalg.half_system(base.astype(np.float32))
    system = linalg.singular_system(tuned.astype(np.float32), 20)
    for k in (1, 5, 10, 20):
        for side, pair in (("left", (base, tuned)), ("right", (base.T, tuned.T))):
            cosines = intruders.best_cosines(half.components(getattr(system, side), side))
            found = intruders.intruders(cosines[:k], system.sigma[:k], threshold)
            assert found.count == published_count(*pair, k, threshold)


@pytest.mark.parametrize(("dimension", "vectors"), [(576, 576), (200, 60), (30, 30), (1, 1)])
def test_the_largest_cosine_of_random_directions(dimension: int, vectors: int) -> None:
    directions = gaussian(dimension, 4000, seed=5)
    largest = (np.abs(directions[:vectors]) / np.linalg.norm(directions, axis=0)).max(axis=0)
    error = largest.std() / np.sqrt(4000)
    found = intruders.random_cosine(dimension, vectors)
    assert found == pytest.approx(largest.mean(), abs=5 * error, rel=1e-4)


@pytest.mark.parametrize(
    ("dimension", "threshold", "off"), [(64, 0.3, 0.09), (64, 0.5, 0.003), (576, 0.13, 0.04)]
)
def test_the_share_of_random_directions_that_intrude(dimension: int, threshold: float, off: float) -> None:
    directions = gaussian(dimension, 4000, seed=6)
    largest = (np.abs(directions) / np.linalg.norm(directions, axis=0)).max(axis=0)
    share = intruders.random_intruder_share(threshold, dimension, dimension)
    assert share == pytest.approx(np.mean(largest < threshold), abs=off)


def test_a_random_direction_is_an_intruder_at_any_usual_threshold() -> None:
    assert intruders.random_intruder_share(0.3, 576, 576) > 0.999
    assert intruders.random_intruder_share(0.05, 576, 576) < 0.001


@pytest.fixture(params=[(40, 24), (24, 40)], ids=["tall", "wide"])
def matrices(request: pytest.FixtureRequest) -> Pair:
    """W0 and dW, of full rank."""
    generator = np.random.default_rng(3)
    return generator.standard_normal(request.param), 0.3 * generator.standard_normal(request.param)


def system_of(matrix: np.ndarray) -> SingularSystem:
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return SingularSystem(sigma, left, right.T)


def edited(matrices: Pair, strength: float, chosen: list[int], others: list[int]) -> dict[str, np.ndarray]:
    base, update = matrices
    system = system_of(base + update)
    made = interventions.edits(system, update, chosen, others, strength, np.random.default_rng(0))
    assert set(made) == set(interventions.ARMS)
    return {arm: edit.tuned(base, update) for arm, edit in made.items()}


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_chosen_singular_values_are_scaled_and_nothing_else(matrices: Pair, strength: float) -> None:
    system = system_of(sum(matrices))
    for arm, indices in (("intruders", [0, 3]), ("neighbours", [1, 2])):
        sigma = system.sigma.copy()
        sigma[indices] *= strength
        expected = (system.left * sigma) @ system.right.T
        found = edited(matrices, strength, [0, 3], [1, 2])[arm]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_strength_one_changes_nothing(matrices: Pair) -> None:
    for found in edited(matrices, 1.0, [0, 1], [2, 3]).values():
        np.testing.assert_allclose(found, sum(matrices), atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_random_directions_are_an_edit_of_the_same_norm(matrices: Pair, strength: float) -> None:
    found, tuned = edited(matrices, strength, [0, 4], [1, 2]), sum(matrices)
    sizes = {arm: np.linalg.norm(matrix - tuned) for arm, matrix in found.items()}
    assert sizes["random"] == pytest.approx(sizes["intruders"], rel=1e-12)
    assert np.linalg.matrix_rank(found["random"] - tuned) == 2


@pytest.mark.parametrize("strength", [0.0, 0.7, 0.95])
def test_the_update_is_shrunk_by_an_edit_of_the_same_norm(matrices: Pair, strength: float) -> None:
    found, (base, update) = edited(matrices, strength, [0, 4], [1, 2]), matrices
    edit = np.linalg.norm(found["intruders"] - base - update)
    share = max(0, 1 - edit / np.linalg.norm(update))  # at strength 0 the edit is larger than the update
    np.testing.assert_allclose(found["shrunk"], base + share * update, atol=1e-12)


def test_the_rescaled_update_has_the_norm_left(matrices: Pair) -> None:
    found, (base, update) = edited(matrices, 0.0, [0, 4], [1, 2]), matrices
    change = found["rescaled"] - base
    assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(found["intruders"] - base), rel=1e-12)
    cosine = (change * update).sum() / (np.linalg.norm(change) * np.linalg.norm(update))
    assert cosine == pytest.approx(1.0)


def test_an_intruder_that_was_planted_is_what_is_removed() -> None:
    generator = np.random.default_rng(0)
    base = generator.standard_normal((60, 30))
    left, right = generator.standard_normal(60), generator.standard_normal(30)
    planted = 30 * np.outer(left / np.linalg.norm(left), right / np.linalg.norm(right))
    system = system_of(base + planted)
    cosines = np.abs(system_of(base).left.T @ system.left).max(axis=0)
    assert interventions.intruders_of(cosines, 0.5, 1, False) == [0]
    removed = interventions.edits(system, planted, [0], [1], 0.0, generator)["intruders"].tuned(base, planted)
    # sigma of the planted vector is 30, far above the base's largest: what is left of dW is small beside it
    assert np.linalg.norm(removed - base) < 0.35 * np.linalg.norm(planted)


def test_which_vectors_are_intruders_and_which_their_controls() -> None:
    cosines = np.array([0.9, 0.2, 0.3, 0.8, 0.1, 0.7, 0.95, 0.2])
    assert interventions.intruders_of(cosines, 0.5, 6, False) == [1, 2, 4]
    assert interventions.intruders_of(cosines, 0.5, 6, True) == [1]
    assert interventions.intruders_of(cosines, 0.05, 6, True) == []
    assert interventions.neighbours_of([1, 2, 4], cosines, 0.5) == [0, 3, 5]
    assert interventions.neighbours_of([1, 2, 4, 7], cosines, 0.92) == [6]  # the others are intruders too
