"""Ranks of noise against values simulated for the project and against dense simulation here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rankdrift.analysis.mathematics.spectral import linalg, nulls

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
def test_ninety_percent_of_the_energy_of_noise_is_half_of_its_ranks(
    size: int, energy: int, nuclear: int | None
) -> None:
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
    np.testing.assert_allclose(
        figures(nulls.product_null(rows, columns, rank)), np.mean(draws, axis=0), rtol=0.02
    )


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
