"""Principal directions, their overlap, SVCCA and PWCCA, against scipy's dense decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation.canonical import (
    VARIANCE_SHARE,
    CanonicalMeans,
    canonical_means,
    required_rows,
)
from rankdrift.analysis.mathematics.representation.moments import centred
from rankdrift.analysis.mathematics.representation.principal import (
    columns_without_top,
    principal_directions,
    subspace_overlap,
)
from rankdrift.analysis.mathematics.representation.similarity import compare, side


def rows(seed: int, n: int = 300, d: int = 12) -> Tensor:
    """Gaussian rows whose standard deviations fall from 1 to .001 over the dimensions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, d)
    return centred(x @ torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q)


def means(x: Tensor, y: Tensor) -> CanonicalMeans:
    return canonical_means(x, y, principal_directions(x), principal_directions(y))


def kept_scores(x: np.ndarray) -> np.ndarray:
    """Projection onto the fewest directions with 99 % of the variance (arXiv 1706.05806)."""
    left, singular, _ = scipy.linalg.svd(x, full_matrices=False)
    held = np.cumsum(singular**2) / np.sum(singular**2)
    count = int(np.argmax(held >= VARIANCE_SHARE)) + 1
    return left[:, :count] * singular[:count]


def dense_means(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """SVCCA and PWCCA by QR: canonical variates as n-vectors, weights as sums over the neurons of x."""
    basis_x, basis_y = (scipy.linalg.qr(kept_scores(z), mode="economic")[0] for z in (x, y))
    left, correlations, _ = scipy.linalg.svd(basis_x.T @ basis_y, full_matrices=False)
    variates = basis_x @ left
    weights = [sum(abs(variate @ neuron) for neuron in x.T) for variate in variates.T]
    return float(np.mean(correlations)), float(np.average(correlations, weights=weights))


@pytest.mark.parametrize(("n", "d"), [(300, 12), (60, 70)])
@pytest.mark.parametrize("swapped", [False, True])
def test_svcca_and_pwcca_equal_dense_ones(n: int, d: int, swapped: bool):
    x = rows(0, n, d)
    y = centred(x + 0.7 * rows(2, n, d))
    x, y = (y, x) if swapped else (x, y)
    got = means(x, y)
    assert (got.svcca, got.pwcca) == pytest.approx(dense_means(x.numpy(), y.numpy()), rel=1e-8)
    assert got.svcca != pytest.approx(got.pwcca, abs=1e-3)


def noise(seed: int, n: int, d: int) -> Tensor:
    """Rows whose dimensions all have about the same variance, so none is cut off for d < 100."""
    return centred(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_they_are_one_for_itself_and_blind_to_any_invertible_map():
    x = noise(0, 300, 8)
    changed = x @ (torch.eye(8) + 0.3 * noise(1, 8, 8))
    assert (means(x, x).svcca, means(x, x).pwcca) == pytest.approx((1, 1))
    assert (means(x, changed).svcca, means(x, changed).pwcca) == pytest.approx((1, 1))


def test_unrelated_noise_is_correlated_unless_rows_are_many():
    """d = 40: mean correlation .82 with about as many rows as directions, .07 with a hundred times as many.

    It falls below .3 from ten rows a direction on, which is what is asked for.
    """
    found = {n: means(noise(n, n, 40), noise(n + 1, n, 40)).svcca for n in (42, 200, 400, 4000)}
    assert found[42] > 0.8
    assert found[200] > 0.3
    assert found[400] < 0.3
    assert found[4000] < 0.1
    few = principal_directions(noise(0, 399, 40))
    assert required_rows(few, few) == 400


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40)])
def test_principal_directions_equal_scipys_singular_vectors(n: int, d: int):
    x = rows(0, n, d)
    _, singular, directions = scipy.linalg.svd(x.numpy(), full_matrices=False)
    got = principal_directions(x)
    rank = len(got.squares)
    assert rank == min(n - 1, d)
    np.testing.assert_allclose(got.squares.sqrt(), singular[:rank], rtol=1e-8)
    alike = np.abs(got.directions.numpy().T @ directions[:rank].T)
    np.testing.assert_allclose(alike, np.eye(rank), atol=1e-6)
    assert got.norm == pytest.approx(np.linalg.norm(x.numpy()))
    assert [got.leading(share) for share in (1e-9, 1.0)] == [1, rank]


def test_overlap_equals_scipys_subspace_angles_and_is_random_for_random_spans():
    x, y = principal_directions(rows(0)), principal_directions(rows(1))
    angles = scipy.linalg.subspace_angles(x.directions[:, :4].numpy(), y.directions[:, :4].numpy())
    assert subspace_overlap(x, y, 4) == pytest.approx(np.mean(np.cos(angles) ** 2))
    assert subspace_overlap(x, x, 4) == pytest.approx(1)
    random = [subspace_overlap(principal_directions(rows(seed)), x, 4) for seed in range(100, 200)]
    assert np.mean(random) == pytest.approx(4 / 12, abs=4 * np.std(random) / 10)
    assert np.isnan(subspace_overlap(x, y.truncated(3), 4))


def test_constant_rows_have_no_direction():
    got = principal_directions(torch.zeros(9, 4, dtype=torch.float64))
    assert got.directions.shape == (4, 0)
    assert got.leading(0.99) == 0
    assert got.norm == 0


def test_one_dimension_of_large_variance_hides_all_others():
    """One shared dimension, the other 575 independent: CKA .9999; without the top dimensions 0."""
    x, y = noise(0, 2000, 576), noise(1, 2000, 576)
    x[:, 17] = y[:, 17] = 300 * noise(2, 2000, 1)[:, 0]
    columns, inputs = columns_without_top(x), torch.arange(len(x))
    assert (17 in columns, len(columns)) == (False, 576 - 5)
    assert compare(x, y, inputs, side(x, inputs)).cka > 0.999
    kept = x[:, columns]
    assert abs(compare(kept, y[:, columns], inputs, side(kept, inputs)).cka) < 0.005


@pytest.mark.parametrize(("d", "left_out"), [(30, 1), (250, 2)])
def test_the_columns_of_largest_variance_are_left_out(d: int, left_out: int):
    x = torch.randn(50, d, generator=torch.Generator().manual_seed(0))
    x[:, 7] *= 100
    x[:, 3] *= 50
    x[:, 5] += 1000  # a large mean is no variance
    expected = sorted(set(range(d)) - set([7, 3][:left_out]))
    assert columns_without_top(x).tolist() == expected
