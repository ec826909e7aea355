"""Ranks, edges and thresholds of noise against simulation, published constants and planted spikes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rankdrift.analysis.mathematics.spectral import linalg, nulls, spiked

KEYS = (
    "entropy_rank",
    "energy_entropy_rank",
    "stable_rank",
    "participation_ratio",
    "e90_energy",
    "e90_nuclear",
)
# Dense Gaussian matrices of each shape, by a full SVD; the last figure is the nuclear norm over sigma_1.
SIMULATED = {
    (2048, 2048): (1649, 1242, 515, 1023, 1044, 1377, 872),
    (5632, 2048): (1943, 1707, 800, 1502, 1465, 1681, 1219),
    (576, 576): (464, 349, 146, 287, 294, 388, 246),
    (1536, 576): (546, 478, 226, 420, 410, 472, 343),
}
PRODUCT_R16 = (16.0, 15.9, 13.6, 15.8, 15, 15, 14.7)


def figures(metrics: linalg.RankMetrics) -> list[float]:
    return [*(getattr(metrics, key) for key in KEYS), metrics.nuclear_norm / metrics.sigma1]


@pytest.mark.parametrize("shape", SIMULATED)
def test_gaussian_null_is_within_two_percent_of_simulation(shape: tuple[int, int]) -> None:
    null = nulls.gaussian_null(*shape)
    np.testing.assert_allclose(figures(null), SIMULATED[shape], rtol=0.02)
    assert null.threshold_rank == min(shape)
    assert null.numerical_rank == pytest.approx(min(shape), abs=2)


@pytest.mark.parametrize(
    ("size", "energy", "nuclear"),
    # arXiv 2405.09673 reports about 2000 of 4096 for full fine-tuning; its own figure S8 shows noise
    [(2048, 1044, 1377), (4096, 2089, None)],
)
def test_ninety_percent_of_noise_is_half_of_its_ranks(size: int, energy: int, nuclear: int | None) -> None:
    null = nulls.gaussian_null(size, size)
    assert null.e90_energy == pytest.approx(energy, rel=0.01)
    if nuclear:  # the sum of sigma, which is called energy too
        assert null.e90_nuclear == pytest.approx(nuclear, rel=0.01)


def test_ranks_beside_their_null_tell_noise_from_structure() -> None:
    null, matrix = nulls.gaussian_null(300, 300), np.random.default_rng(1).standard_normal((300, 300))
    noise, structured = (
        linalg.rank_metrics(linalg.singular_values(w), 300, 300)
        for w in (matrix, matrix * np.linspace(3, 0.1, 300))
    )
    assert noise.e90_energy > 0.4 * 300  # reads as "high rank" alone
    assert noise.e90_energy / null.e90_energy == pytest.approx(1, abs=0.03)
    assert structured.e90_energy / null.e90_energy < 0.9


def test_product_null_is_within_two_percent_of_simulation() -> None:
    null = nulls.product_null(2048, 5632, 16)
    assert null.nuclear_spectral_ratio == pytest.approx(14.7, rel=0.02)
    np.testing.assert_allclose(figures(null), PRODUCT_R16, rtol=0.02)
    assert null.threshold_rank == null.numerical_rank == 16


@pytest.mark.parametrize(("rows", "columns", "rank"), [(192, 96, 4), (48, 96, 40), (24, 96, 40)])
def test_product_null_is_the_mean_over_dense_products(rows: int, columns: int, rank: int) -> None:
    generator = np.random.default_rng(1)
    draws = []
    for _ in range(600):
        dense = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
        sigma = np.linalg.svd(dense, compute_uv=False)[: min(rows, columns, rank)]
        draws.append(figures(linalg.rank_metrics(sigma, rows, columns)))
    found = figures(nulls.product_null(rows, columns, rank))
    np.testing.assert_allclose(found, np.mean(draws, axis=0), rtol=0.02)


@pytest.mark.parametrize(("rows", "columns"), [(80, 80), (160, 80), (80, 320)])
def test_condition_number_of_noise_is_the_median_of_simulation(rows: int, columns: int) -> None:
    generator = np.random.default_rng(3)
    drawn = [np.linalg.cond(generator.standard_normal((rows, columns))) for _ in range(400)]
    null = nulls.gaussian_null(rows, columns).condition_number
    # a median of n draws has a share of 1/2 +- 1/(2 sqrt(n)) of them below; the rectangular law is a limit
    share = np.mean(np.array(drawn) < null)
    assert share == pytest.approx(0.5, abs=0.1) or null == pytest.approx(np.median(drawn), rel=0.05)


def test_condition_number_of_a_product_is_that_of_dense_products() -> None:
    generator = np.random.default_rng(3)
    drawn = [
        _condition(generator.standard_normal((60, 6)) @ generator.standard_normal((6, 40)), 6)
        for _ in range(400)
    ]
    assert nulls.product_null(60, 40, 6).condition_number == pytest.approx(np.median(drawn), rel=0.05)


def _condition(matrix: np.ndarray, rank: int) -> float:
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return float(sigma[0] / sigma[rank - 1])


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("share", [0.3, 1.0, 30.0])
def test_how_much_noise_is_above_an_absolute_threshold_depends_on_its_norm(rank: int, share: float) -> None:
    """Of an update whose mean singular value is a share of 1e-5 the threshold cuts noise as well."""
    shape, generator = (90, 60), np.random.default_rng(5)
    norm = share * 1e-5 * np.sqrt(rank or 60)
    counts = []
    for _ in range(300):
        inner = generator.standard_normal((rank, 60)) if rank else np.eye(60)
        drawn = generator.standard_normal((90, rank or 60)) @ inner
        sigma = np.linalg.svd(norm * drawn / np.linalg.norm(drawn), compute_uv=False)
        counts.append(np.count_nonzero(sigma > 1e-5))
    draws = nulls.product_draws(*shape, rank) if rank else nulls.gaussian_singular_values(*shape)[None]
    assert nulls.threshold_rank_null(draws, norm) == pytest.approx(np.mean(counts), rel=0.05, abs=0.3)


def test_gaussian_null_has_the_norm_of_noise() -> None:
    # E ||X||_F^2 = m n for unit variance
    assert nulls.gaussian_null(300, 200).norm == pytest.approx((300 * 200) ** 0.5, rel=1e-3)


def test_the_null_does_not_depend_on_orientation_or_on_earlier_calls() -> None:
    assert nulls.gaussian_null(96, 192) == nulls.gaussian_null(192, 96)
    first = nulls.product_null(96, 64, 8)
    nulls.product_null.cache_clear()
    assert dataclasses.astuple(nulls.product_null(96, 64, 8)) == dataclasses.astuple(first)


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
    level = spiked.noise_level(sigma, 500, 500)
    assert spiked.hard_threshold(level, 500, 500) == pytest.approx(2.858 * 2.0, rel=1e-3)


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
    values = enumerate((9.0, 6.0, 4.0, 2.2, 1.2))
    signal = sum(t * np.outer(unit(300, s), unit(200, s + 9)) for s, t in values)
    u, sigma, v = np.linalg.svd(signal + noise(*shape, level), full_matrices=False)
    losses = [np.linalg.norm((u[:, :k] * sigma[:k]) @ v[:k] - signal) for k in range(12)]
    level = spiked.noise_level(sigma, *shape)
    assert np.count_nonzero(sigma > spiked.hard_threshold(level, *shape)) == np.argmin(losses)
