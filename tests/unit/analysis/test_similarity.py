"""Similarity against closed forms and a dense Gram-matrix HSIC written from arXiv 2010.15327, eq. 3."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import torch
from torch import Tensor

from rankdrift.analysis.similarity import (
    SHARDS,
    CrossMoments,
    cka,
    compare,
    hsic_estimates,
    mean_cosine,
    relative_l2,
)
from rankdrift.errors import UserError


def rows(seed: int, n: int = 40, d: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + 3.0


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


def similarity(x: Tensor, y: Tensor):
    return compare(x, y, hsic_estimates(x, x))


def mixture(x: Tensor, seed: int) -> Tensor:
    """Rows that are partly x, partly noise: a CKA well away from 0 and 1."""
    return 0.7 * x + rows(seed, *x.shape)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40), (5, 3), (4, 7)])
def test_cka_equals_the_dense_formula(n: int, d: int):
    x, y = rows(0, n, d), mixture(rows(0, n, d), 1)
    got = similarity(x, y)
    assert got.cka == pytest.approx(dense_cka(x.numpy(), y.numpy()), rel=1e-10)
    assert got.cka_biased == pytest.approx(kornblith_cka(x.numpy(), y.numpy()), rel=1e-10)


def test_representations_may_differ_in_width():
    x, y = rows(0, d=12), rows(1, d=7)
    value, _, biased = cka(hsic_estimates(x, x), hsic_estimates(x, y), hsic_estimates(y, y))
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


def test_the_same_representation_has_not_drifted():
    x = rows(0)
    got = similarity(x, x.clone())
    assert (got.cka, got.cka_biased, got.cosine, got.cosine_centered) == pytest.approx((1, 1, 1, 1))
    assert got.cka_stderr == pytest.approx(0, abs=1e-12)
    assert got.relative_l2 == 0
    assert got.n == 40


def test_cka_is_blind_to_rotation_isotropic_scale_and_shift():
    x = rows(0)
    rotation = torch.linalg.qr(rows(3, 12, 12)).Q
    got = similarity(x, -2.5 * x @ rotation + 100.0)
    assert got.cka == pytest.approx(1, abs=1e-10)
    assert got.cka_biased == pytest.approx(1, abs=1e-10)
    assert got.relative_l2 > 1


def test_independent_representations_are_unlike_only_without_bias():
    """n = 64, d = 576: biased CKA of independent Gaussians is about .90 (see arXiv 2405.01012 on why)."""
    got = similarity(rows(0, 64, 576), rows(1, 64, 576))
    assert abs(got.cka) < 0.05
    assert got.cka_biased == pytest.approx(0.90, abs=0.01)


@pytest.mark.parametrize("n", [9, 40])
def test_jackknife_equals_leaving_shards_out_by_hand(n: int):
    x, y = rows(0, n), mixture(rows(0, n), 1)
    shards = min(SHARDS, n)
    kept = [np.arange(n) % shards != shard for shard in range(shards)]
    left = np.array([dense_cka(x.numpy()[rest], y.numpy()[rest]) for rest in kept])
    expected = np.sqrt((shards - 1) / shards * np.sum((left - left.mean()) ** 2))
    assert similarity(x, y).cka_stderr == pytest.approx(expected, rel=1e-8)


def test_jackknife_is_about_the_spread_over_samples():
    """Over 60 independent samples, the mean stderr is within 25 % of the standard deviation of CKA."""
    found = [similarity(x, mixture(x, 1000 + seed)) for seed in range(60) for x in [rows(seed, 96, 4)]]
    spread = np.std([each.cka for each in found], ddof=1)
    assert np.mean([each.cka_stderr for each in found]) == pytest.approx(spread, rel=0.25)


def test_four_rows_have_no_standard_error():
    got = similarity(rows(0, 4), rows(1, 4))
    assert np.isfinite(got.cka)
    assert np.isnan(got.cka_stderr)


@pytest.mark.parametrize("n", [0, 3])
def test_fewer_than_four_rows_are_refused(n: int):
    with pytest.raises(UserError, match=f"at least 4 inputs, got {n}"):
        hsic_estimates(rows(0, n), rows(1, n))
    with pytest.raises(UserError, match=f"at least 4 inputs, got {n}"):
        CrossMoments.of(rows(0, n), rows(1, n)).hsic()


def test_a_constant_representation_has_no_cka():
    x = rows(0)
    got = similarity(x, torch.full_like(x, 0.1))
    assert np.isnan([got.cka, got.cka_biased, got.cosine_centered]).all()


def test_cosine_is_a_mean_over_rows():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert mean_cosine(x, y) == pytest.approx((1 + np.sqrt(0.5)) / 2)
    assert np.isnan(mean_cosine(torch.zeros(1, 2), y[:1]))


def test_a_shared_offset_moves_the_raw_cosine_but_not_the_centred_one():
    x, y = rows(0, 400, 50) + 10, rows(1, 400, 50) + 10
    got = similarity(x, y)
    assert got.cosine > 0.95
    assert abs(got.cosine_centered) < 0.05


def test_relative_l2_is_relative_to_the_base():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert relative_l2(x, 2 * x) == 1
    assert relative_l2(2 * x, x) == 0.5
