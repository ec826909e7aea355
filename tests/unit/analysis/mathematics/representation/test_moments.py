"""HSIC and CKA from sums over rows, against dense Gram matrices as arXiv 2010.15327, eq. 3, has them."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation import layer_grid
from rankdrift.analysis.mathematics.representation.layer_grid import layer_grid_cka
from rankdrift.analysis.mathematics.representation.moments import (
    SHARDS,
    CrossMoments,
    HsicEstimates,
    centred,
    cka,
    hsic_estimates,
    shard_moments,
)
from rankdrift.errors import UserError


def rows(seed: int, n: int = 40, d: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + 3.0


def mixture(x: Tensor, seed: int) -> Tensor:
    """Rows that are partly x, partly noise: a CKA well away from 0 and 1."""
    return 0.7 * x + rows(seed, *x.shape)


def dense_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC1 from n x n Gram matrices, as the formula stands."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    ones = np.ones(n)
    corner = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + corner - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))


def dense_cka(x: np.ndarray, y: np.ndarray) -> float:
    return dense_hsic(x, y) / np.sqrt(dense_hsic(x, x) * dense_hsic(y, y))


def kornblith_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA as in arXiv 1905.00414: ||YᵀX||_F² / (||XᵀX||_F ||YᵀY||_F) of centred columns."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def of_rows(x: Tensor, y: Tensor, inputs: Tensor | None = None) -> HsicEstimates:
    """HSIC of x and y with the jackknife's shards; without ``inputs`` every row is one."""
    inputs = torch.arange(len(x)) if inputs is None else inputs
    x, y = centred(x), centred(y)
    return hsic_estimates(x, y, inputs, shard_moments(x, y, inputs))


def estimate(x: Tensor, y: Tensor, inputs: Tensor | None = None) -> tuple[float, float, float]:
    return cka(of_rows(x, x, inputs), of_rows(x, y, inputs), of_rows(y, y, inputs))


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40), (5, 3), (4, 7)])
def test_cka_equals_the_dense_formula(n: int, d: int):
    x, y = rows(0, n, d), mixture(rows(0, n, d), 1)
    value, _, biased = estimate(x, y)
    assert value == pytest.approx(dense_cka(x.numpy(), y.numpy()), rel=1e-10)
    assert biased == pytest.approx(kornblith_cka(x.numpy(), y.numpy()), rel=1e-10)


def test_representations_may_differ_in_width():
    x, y = rows(0, d=12), rows(1, d=7)
    value, _, biased = estimate(x, y)
    assert value == pytest.approx(dense_cka(x.numpy(), y.numpy()), rel=1e-10)
    assert biased == pytest.approx(kornblith_cka(x.numpy(), y.numpy()), rel=1e-10)


def test_moments_of_batches_add_up_whatever_fixed_vector_is_subtracted():
    x, y = rows(0), mixture(rows(0), 1)
    batches = zip(x.split(7), y.split(7), strict=True)
    total = functools.reduce(operator.add, (CrossMoments.of(a - x[0], b - y[0]) for a, b in batches))
    assert float(total.hsic()) == pytest.approx(dense_hsic(x.numpy(), y.numpy()), rel=1e-10)
    biased = np.linalg.norm((x - x.mean(0)).T @ (y - y.mean(0))) ** 2 / (len(x) - 1) ** 2
    assert float(total.hsic_biased()) == pytest.approx(biased, rel=1e-10)
    rest = total - CrossMoments.of(x[:5] - x[0], y[:5] - y[0])
    assert float(rest.hsic()) == pytest.approx(dense_hsic(x[5:].numpy(), y[5:].numpy()), rel=1e-10)


def test_cka_is_one_of_itself_and_blind_to_rotation_isotropic_scale_and_shift():
    x = rows(0)
    rotation = torch.linalg.qr(rows(3, 12, 12)).Q
    assert estimate(x, x) == pytest.approx((1, 0, 1), abs=1e-12)
    assert estimate(x, x @ rotation) == pytest.approx((1, 0, 1), abs=1e-10)
    assert estimate(x, -2.5 * x @ rotation + 100.0) == pytest.approx((1, 0, 1), abs=1e-10)


@pytest.mark.parametrize(("n", "expected"), [(32, 0.949), (64, 0.900), (128, 0.819), (256, 0.693)])
def test_independent_representations_are_unlike_only_without_bias(n: int, expected: float):
    """d = 576: biased CKA of independent Gaussians is near 1 (see arXiv 2405.01012 on why)."""
    value, stderr, biased = estimate(rows(0, n, 576), rows(1, n, 576))
    assert abs(value) < 0.05
    assert abs(value) < 4 * stderr
    assert biased == pytest.approx(expected, abs=0.01)


def by_hand(x: Tensor, y: Tensor, shard: np.ndarray) -> float:
    """Jackknife standard error of the dense CKA, leaving out the rows of one shard after another."""
    left = np.array([dense_cka(x.numpy()[shard != s], y.numpy()[shard != s]) for s in np.unique(shard)])
    return float(np.sqrt((len(left) - 1) / len(left) * np.sum((left - left.mean()) ** 2)))


@pytest.mark.parametrize("n", [9, 40])
def test_jackknife_equals_leaving_shards_out_by_hand(n: int):
    x, y = rows(0, n), mixture(rows(0, n), 1)
    assert estimate(x, y)[1] == pytest.approx(by_hand(x, y, np.arange(n) % min(SHARDS, n)), rel=1e-8)


def alike_tokens(seed: int, inputs: Tensor, d: int, share: float = 0.3) -> Tensor:
    """Rows of unit variance a feature, of which ``share`` is common to the rows of an input."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(int(inputs.max()) + 1, d, generator=generator, dtype=torch.float64)
    own = torch.randn(len(inputs), d, generator=generator, dtype=torch.float64)
    return share**0.5 * common[inputs] + (1 - share) ** 0.5 * own


@pytest.mark.parametrize(("shared", "cka_of_all"), [(0.0, 0.0), (0.9, 0.81)])
def test_tokens_of_one_input_do_not_make_representations_alike(shared: float, cka_of_all: float):
    """Y = a X + sqrt(1 - a²) Z with X, Z independent has the CKA a² (d features of equal covariance)."""
    inputs = torch.arange(64).repeat_interleave(torch.arange(64) % 7 + 5)
    corrected, plain = [], []
    for seed in range(8):
        x, z = alike_tokens(seed, inputs, 100), alike_tokens(1000 + seed, inputs, 100)
        y = shared * x + (1 - shared**2) ** 0.5 * z
        corrected.append(estimate(x, y, inputs)[0])
        plain.append(dense_cka(x.numpy(), y.numpy()))
    error = np.std(corrected) / np.sqrt(len(corrected))
    assert abs(np.mean(corrected) - cka_of_all) < 3 * error
    assert error < 0.005
    assert np.mean(plain) - cka_of_all > 0.015  # HSIC1 takes the tokens of an input for independent


def test_tokens_of_two_inputs_have_no_estimate():
    inputs = torch.tensor([0, 0, 0, 0, 1])
    estimates = of_rows(rows(0, 5), rows(1, 5), inputs)
    assert estimates.debiased[0].isnan()
    assert np.isfinite(float(estimates.biased))


def clustered_hsic(x: np.ndarray, y: np.ndarray, inputs: np.ndarray) -> float:
    """As it is defined: least squares of the entries between inputs on u_a + u_b, what is left of both."""
    first, second = np.nonzero(inputs[:, None] != inputs)
    design = np.zeros((len(first), len(x)))
    design[np.arange(len(first)), first] += 1
    design[np.arange(len(first)), second] += 1
    left = []
    for gram in (x @ x.T, y @ y.T):
        entries = gram[first, second]
        left.append(entries - design @ np.linalg.lstsq(design, entries, rcond=None)[0])
    return float(left[0] @ left[1]) / (len(first) - 2 * len(x))


def clustered_cka(x: Tensor, y: Tensor, inputs: Tensor) -> float:
    args = [part.numpy() for part in (x, y)]
    xx, xy, yy = (clustered_hsic(a, b, inputs.numpy()) for a, b in ((args[0],) * 2, args, (args[1],) * 2))
    return xy / np.sqrt(xx * yy)


@pytest.mark.parametrize("d", [12, 80])
def test_cka_of_tokens_is_that_of_the_projected_entries_between_inputs(d: int):
    inputs = torch.arange(9).repeat_interleave(torch.arange(9) % 4 + 2)
    x = rows(0, len(inputs), d)
    y = mixture(x, 1)
    assert estimate(x, y, inputs)[0] == pytest.approx(clustered_cka(x, y, inputs), rel=1e-8)
    single = torch.arange(len(x))
    assert clustered_cka(x, y, single) == pytest.approx(dense_cka(x.numpy(), y.numpy()), rel=1e-8)


def test_cka_of_tokens_is_never_above_one():
    """Few inputs, hardly moved: where a correction of the biased estimate went beyond 1 every other time."""
    values = []
    for seed in range(200):
        inputs = torch.arange(5).repeat_interleave(4)
        x = alike_tokens(seed, inputs, 30)
        values.append(estimate(x, x + 1e-3 * rows(seed, 20, 30), inputs)[0])
    assert np.nanmax(values) <= 1 + 1e-12
    assert np.isfinite(values).sum() > 150


@pytest.mark.parametrize("d", [12, 80])
def test_jackknife_leaves_whole_inputs_out(d: int):
    """Inputs of 1, 2 and 3 tokens in turn; sums of whole shards, whatever the number of rows in each."""
    inputs = torch.arange(27).repeat_interleave(torch.arange(27) % 3 + 1)
    x = rows(0, len(inputs), d)
    y = mixture(x, 1)
    shards = shard_moments(centred(x), centred(y), inputs)
    assert [int(shard.count) for shard in shards] == np.bincount(inputs % SHARDS).tolist()
    left = [
        clustered_cka(x[inputs % SHARDS != n], y[inputs % SHARDS != n], inputs[inputs % SHARDS != n])
        for n in range(SHARDS)
    ]
    expected = np.sqrt((SHARDS - 1) / SHARDS * np.sum((left - np.mean(left)) ** 2))
    assert estimate(x, y, inputs)[1] == pytest.approx(expected, rel=1e-8)


def test_jackknife_is_about_the_spread_over_samples():
    """Over 60 independent samples, the mean stderr is within 25 % of the standard deviation of CKA."""
    found = [estimate(x, mixture(x, 1000 + seed)) for seed in range(60) for x in [rows(seed, 96, 4)]]
    spread = np.std([value for value, _, _ in found], ddof=1)
    assert np.mean([stderr for _, stderr, _ in found]) == pytest.approx(spread, rel=0.25)


def test_tokens_of_one_input_are_not_independent_observations():
    """Five like tokens an input: with tokens as observations the stderr is about 1/√5 of the spread."""
    inputs, naive, clustered, values = torch.arange(96).repeat_interleave(5), [], [], []
    for seed in range(40):
        x = rows(seed, 96, 4).repeat_interleave(5, dim=0)
        y = mixture(rows(seed, 96, 4), 1000 + seed).repeat_interleave(5, dim=0)
        scattered = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))]
        value, stderr, _ = estimate(x, y, inputs)
        values.append(value)
        clustered.append(stderr)
        naive.append(estimate(x, y, scattered)[1])
    spread = np.std(values, ddof=1)
    assert np.mean(clustered) == pytest.approx(spread, rel=0.25)
    assert np.mean(naive) == pytest.approx(spread / np.sqrt(5), rel=0.25)


def test_the_jackknife_interval_covers_the_true_value():
    """Gaussian y = a x + √(1-a²) noise has CKA a²: Σ_xy = aI, Σ_xx = Σ_yy = I, CKA = ||Σ_xy||²/d.

    95 % t intervals with SHARDS - 1 degrees of freedom over 200 samples: four binomial standard errors.
    """
    generator, samples, a = torch.Generator().manual_seed(0), 200, 0.8
    critical, covered = scipy.stats.t.ppf(0.975, SHARDS - 1), 0
    for _ in range(samples):
        x, noise = torch.randn(2, 160, 4, generator=generator, dtype=torch.float64)
        value, stderr, _ = estimate(x, a * x + np.sqrt(1 - a**2) * noise)
        covered += abs(value - a**2) <= critical * stderr
    assert covered / samples == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / samples))


def test_four_rows_have_no_standard_error():
    value, stderr, _ = estimate(rows(0, 4), rows(1, 4))
    assert np.isfinite(value)
    assert np.isnan(stderr)


@pytest.mark.parametrize("n", [0, 3])
def test_fewer_than_four_rows_are_refused(n: int):
    with pytest.raises(UserError, match=f"at least 4 inputs, got {n}"):
        shard_moments(rows(0, n), rows(1, n), torch.arange(n))
    with pytest.raises(UserError, match=f"at least 4 inputs, got {n}"):
        CrossMoments.of(rows(0, n), rows(1, n)).hsic()


def test_a_negative_variance_estimate_on_both_sides_gives_no_number():
    """HSIC(X, X) is an unbiased estimate and may come out below zero; two of them have a positive product."""
    below = HsicEstimates(debiased=torch.tensor([-1.0]), biased=torch.tensor(1.0))
    assert np.isnan(cka(below, below, below)[0])


def readers(*layers: torch.Tensor):
    return [lambda layer=layer: layer for layer in layers]


def layers(seed: int, count: int, n: int = 30, d: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=generator)
    return [first + index * torch.randn(n, d, generator=generator) + 5 for index in range(count)]


def pair_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    return dense_cka(centred(x).numpy(), centred(y).numpy())


@pytest.mark.parametrize("elements", [2**18, 100, 1])
def test_every_pair_equals_the_pair_alone(monkeypatch: pytest.MonkeyPatch, elements: int):
    monkeypatch.setattr(layer_grid, "BLOCK_ELEMENTS", elements)
    base, tuned = layers(0, 3), [*layers(0, 2), layers(1, 1, d=4)[0], layers(2, 1)[0]]
    got = layer_grid_cka(readers(*base), readers(*tuned))
    assert got.shape == (3, 4)
    for i, x in enumerate(base):
        for j, y in enumerate(tuned):
            assert float(got[i, j]) == pytest.approx(pair_cka(x, y), rel=1e-10)


def test_a_constant_layer_is_like_none():
    got = layer_grid_cka(readers(*layers(0, 2)), readers(torch.full((30, 9), 0.1), layers(0, 1)[0]))
    assert np.isnan(got[:, 0]).all()
    assert got[0, 1] == pytest.approx(1)


def test_a_grid_of_fewer_than_four_rows_is_refused():
    with pytest.raises(UserError, match="at least 4 inputs, got 3"):
        layer_grid_cka(readers(*layers(0, 1, n=3)), readers(*layers(1, 1, n=3)))
