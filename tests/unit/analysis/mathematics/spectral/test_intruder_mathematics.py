"""Intruders against the definition and the published algorithm, random directions against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from rankdrift.analysis.mathematics.spectral import intruders, linalg


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


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
    assert intruders.random_cosine(dimension, vectors) == pytest.approx(
        largest.mean(), abs=5 * error, rel=1e-4
    )


@pytest.mark.parametrize(
    ("dimension", "threshold", "off"), [(64, 0.3, 0.09), (64, 0.5, 0.003), (576, 0.13, 0.04)]
)
def test_the_share_of_random_directions_that_are_intruders(
    dimension: int, threshold: float, off: float
) -> None:
    directions = gaussian(dimension, 4000, seed=6)
    largest = (np.abs(directions) / np.linalg.norm(directions, axis=0)).max(axis=0)
    share = intruders.random_intruder_share(threshold, dimension, dimension)
    assert share == pytest.approx(np.mean(largest < threshold), abs=off)


def test_a_random_direction_is_an_intruder_at_any_usual_threshold() -> None:
    assert intruders.random_intruder_share(0.3, 576, 576) > 0.999
    assert intruders.random_intruder_share(0.05, 576, 576) < 0.001
