"""Bulk, edge, spikes and thresholds against simulated matrices and published constants."""

from __future__ import annotations

import numpy as np
import pytest

from rankdrift.analysis.mathematics.spectral import spiked


def noise(rows: int, columns: int, level: float, seed: int = 0) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal((rows, columns))


def unit(size: int, seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(size)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("shape", [(300, 300), (600, 200), (150, 500)])
def test_the_level_of_noise_is_found_beside_spikes(shape: tuple[int, int]) -> None:
    level = 0.02
    spikes = sum(5 * np.outer(unit(shape[0], s), unit(shape[1], s + 50)) for s in range(5))
    sigma = np.linalg.svd(noise(*shape, level) + spikes, compute_uv=False)
    assert spiked.noise_level(sigma, *shape) == pytest.approx(level, rel=0.03)


@pytest.mark.parametrize("shape", [(400, 400), (800, 300), (300, 800)])
def test_the_edge_is_that_of_noise(shape: tuple[int, int]) -> None:
    largest = np.linalg.norm(noise(*shape, 0.5), 2)
    assert spiked.bulk_edge(0.5, *shape) == pytest.approx(largest, rel=0.02)


@pytest.mark.parametrize("shape", [(40, 40), (120, 40)])
def test_noise_exceeds_the_threshold_of_spikes_once_in_a_thousand(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    drawn = [np.linalg.norm(generator.standard_normal(shape), 2) for _ in range(8000)]
    share = np.mean(np.array(drawn) > spiked.spike_threshold(1.0, *shape))
    assert 0.0002 <= share <= 0.0025  # 0.001 +- 4 sqrt(0.001 / 8000), less what the limit law is off here


@pytest.mark.parametrize("shape", [(600, 600), (900, 400), (400, 900)])
@pytest.mark.parametrize("strength", [1.3, 2.0, 4.0])
def test_a_planted_spike_becomes_what_the_theory_says(shape: tuple[int, int], strength: float) -> None:
    # S3: within 3 %; formulas of arXiv 1103.2221, section 3.1
    level = 0.05
    theta = strength * spiked.onset(level, *shape)
    left, right = unit(shape[0], 1), unit(shape[1], 2)
    u, sigma, v = np.linalg.svd(noise(*shape, level) + theta * np.outer(left, right), full_matrices=False)
    expected = spiked.planted_spike(theta, level, *shape)
    assert sigma[0] == pytest.approx(expected.sigma, rel=0.03)
    if strength > 1.5:  # nearer to the onset the cosines of one draw still fluctuate
        assert abs(u[:, 0] @ left) == pytest.approx(expected.cosine_left, rel=0.03)
        assert abs(v[0] @ right) == pytest.approx(expected.cosine_right, rel=0.03)


@pytest.mark.parametrize("shape", [(600, 600), (400, 900)])
def test_a_spike_below_the_onset_leaves_no_vector(shape: tuple[int, int]) -> None:
    theta = 0.6 * spiked.onset(1.0, *shape)
    left, right = unit(shape[0], 1), unit(shape[1], 2)
    u, sigma, _ = np.linalg.svd(noise(*shape, 1.0) + theta * np.outer(left, right), full_matrices=False)
    expected = spiked.planted_spike(theta, 1.0, *shape)
    assert (expected.cosine_left, expected.cosine_right) == (0, 0)
    assert sigma[0] == pytest.approx(expected.sigma, rel=0.03)
    assert abs(u[:, 0] @ left) < 0.3


def test_the_spike_is_continuous_at_the_onset() -> None:
    above = spiked.planted_spike(1.0001 * spiked.onset(0.1, 300, 500), 0.1, 300, 500)
    assert above.sigma == pytest.approx(spiked.bulk_edge(0.1, 300, 500), rel=1e-6)
    assert above.cosine_left < 0.05


def test_the_hard_threshold_of_a_square_matrix_is_published() -> None:
    # arXiv 1305.5870: 4 / sqrt(3) sqrt(n) s with known noise, 2.858 times the median value without
    assert spiked.hard_threshold(1.0, 100, 100) == pytest.approx(4 / np.sqrt(3) * 10, rel=1e-12)
    sigma = np.full(500, 2.0)
    assert spiked.hard_threshold(spiked.noise_level(sigma, 500, 500), 500, 500) == pytest.approx(
        2.858 * 2.0, rel=1e-3
    )


def test_what_is_learned_is_counted_beside_noise() -> None:
    """Of full rank by any small threshold."""
    shape, rank = (160, 120), 8
    generator = np.random.default_rng(1)
    update = generator.standard_normal((160, rank)) @ generator.standard_normal((rank, 120))
    sigma = np.linalg.svd(update + noise(*shape, 0.1, seed=3), compute_uv=False)
    level = spiked.noise_level(sigma, *shape)
    assert np.count_nonzero(sigma > 1e-5) == 120
    assert np.count_nonzero(sigma > spiked.spike_threshold(level, *shape)) == rank
    assert np.count_nonzero(sigma > spiked.hard_threshold(level, *shape)) == rank


def test_the_hard_threshold_denoises_best() -> None:
    # keeping the values above it loses least against the planted matrix, over all thresholds
    shape, level = (300, 200), 0.1
    signal = sum(
        t * np.outer(unit(300, s), unit(200, s + 9)) for s, t in enumerate((9.0, 6.0, 4.0, 2.2, 1.2))
    )
    u, sigma, v = np.linalg.svd(signal + noise(*shape, level), full_matrices=False)
    losses = [np.linalg.norm((u[:, :k] * sigma[:k]) @ v[:k] - signal) for k in range(12)]
    level = spiked.noise_level(sigma, *shape)
    assert np.count_nonzero(sigma > spiked.hard_threshold(level, *shape)) == np.argmin(losses)
