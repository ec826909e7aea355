"""One comparison of two representations, against closed forms and scipy; what is undefined says why."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation.procrustes import procrustes_distance
from rankdrift.analysis.mathematics.representation.similarity import (
    OVERLAP_DIRECTIONS,
    Similarity,
    compare,
    mean_cosine,
    relative_l2,
    side,
)
from rankdrift.errors import UserError


def rows(seed: int, n: int = 40, d: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + 3.0


def similarity(x: Tensor, y: Tensor) -> Similarity:
    inputs = torch.arange(len(x))
    return compare(x, y, inputs, side(x, inputs))


def undefined(found: Similarity) -> set[str]:
    return {name for name, value in dataclasses.asdict(found).items() if value != value}


@pytest.mark.parametrize(("n", "d"), [(400, 12), (40, 60)])
def test_the_same_representation_has_not_drifted(n: int, d: int):
    """Exactly: not to rounding, as distances and standard errors would otherwise be of about 1e-8."""
    x = rows(0, n, d)
    got = similarity(x, x.clone())
    assert (got.cka, got.cka_biased, got.cka_stderr, got.relative_l2, got.procrustes) == (1, 1, 0, 0, 0)
    assert (got.cosine, got.cosine_centered, got.subspace_overlap) == pytest.approx((1, 1, 1))
    assert got.n == n
    if n > d:
        assert (got.svcca, got.pwcca) == pytest.approx((1, 1))
        assert got.reason == ""


def test_rotation_scale_and_shift_are_seen_by_distances_alone():
    x = rows(0, 400)
    rotation = torch.linalg.qr(rows(3, 12, 12)).Q
    got = similarity(x, -2.5 * x @ rotation + 100.0)
    assert (got.cka, got.cka_biased, got.svcca, got.pwcca) == pytest.approx((1, 1, 1, 1))
    assert got.procrustes < 1e-7
    assert got.relative_l2 > 1
    assert abs(got.cosine_centered) < 0.9


def test_procrustes_is_scipys_on_few_and_on_many_rows():
    for n, d in ((40, 12), (12, 40)):
        x, y = rows(0, n, d), rows(0, n, d) + rows(1, n, d)
        a, b = (z - z.mean(axis=0) for z in (x.numpy(), y.numpy()))
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        rotation, _ = scipy.linalg.orthogonal_procrustes(a, b)
        assert similarity(x, y).procrustes == pytest.approx(np.linalg.norm(a @ rotation - b), rel=1e-10)


def test_what_needs_more_rows_is_refused_and_the_rest_is_not():
    got = similarity(rows(0, 64, 576), rows(1, 64, 576))
    assert undefined(got) == {"svcca", "pwcca"}
    assert got.reason.startswith("svcca: 64 rows, 6")
    assert got.subspace_overlap_random == OVERLAP_DIRECTIONS / 576


def test_four_rows_have_no_standard_error_and_few_directions():
    got = similarity(rows(0, 4), rows(1, 4))
    assert undefined(got) == {"cka_stderr", "svcca", "pwcca", "subspace_overlap"}
    assert "cka_stderr: cka is undefined without some shard" in got.reason
    assert "subspace_overlap: 3 principal directions, 10 needed" in got.reason


def test_fewer_than_four_rows_are_refused():
    with pytest.raises(UserError, match="at least 4 inputs, got 3"):
        similarity(rows(0, 3), rows(1, 3))


@pytest.mark.parametrize(
    ("base", "tuned", "who"), [(False, True, "tuned"), (True, False, "base"), (True, True, "base and tuned")]
)
def test_a_constant_representation_says_so(base: bool, tuned: bool, who: str):
    constant = torch.full((40, 12), 0.1)
    got = similarity(constant if base else rows(0), constant if tuned else rows(1))
    expected = {"cka", "cka_stderr", "cka_biased", "cosine_centered", "procrustes"}
    assert undefined(got) == expected | {"svcca", "pwcca", "subspace_overlap"}
    assert got.reason == f"the representation is constant ({who})"


def test_a_zero_row_has_no_cosine():
    x = rows(0)
    x[3] = 0
    got = similarity(x, rows(1))
    assert math.isnan(got.cosine)
    assert got.reason.startswith("cosine: a row is zero")


def test_cosine_is_a_mean_over_rows():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert mean_cosine(x, y) == pytest.approx((1 + np.sqrt(0.5)) / 2)
    assert np.isnan(mean_cosine(torch.zeros(1, 2), y[:1]))


def test_a_common_mean_is_no_likeness() -> None:
    """An offset of five standard deviations: raw cosine .961, centred .000, debiased CKA -.001."""
    x, y = (rows(seed, 2000, 576) + 2 for seed in (0, 1))
    got = similarity(x, y)
    assert got.cosine == pytest.approx(0.961, abs=0.002)
    assert got.cosine_centered == pytest.approx(0, abs=0.003)
    assert got.cka == pytest.approx(0, abs=0.005)


def test_relative_l2_is_relative_to_the_base():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert relative_l2(x, 2 * x) == 1
    assert relative_l2(2 * x, x) == 0.5
    assert np.isnan(relative_l2(torch.zeros(2, 2), x))


def normalised(seed: int, n: int, d: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(axis=0)
    return x / np.linalg.norm(x)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30)])
def test_distance_is_what_is_left_after_scipys_rotation(n: int, d: int):
    x, y = normalised(0, n, d), normalised(1, n, d)
    rotation, _ = scipy.linalg.orthogonal_procrustes(x, y)
    got = procrustes_distance(torch.from_numpy(5 * x.T @ y), 5.0, 1.0)
    assert got == pytest.approx(np.linalg.norm(x @ rotation - y), rel=1e-12)


def test_distance_is_zero_for_rotations_and_largest_for_nothing_in_common():
    x = normalised(0, 30, 8)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    assert procrustes_distance(torch.from_numpy(x.T @ (x @ rotation)), 1.0, 1.0) < 1e-7
    assert procrustes_distance(torch.zeros(8, 8, dtype=torch.float64), 1.0, 1.0) == np.sqrt(2)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_few_rows_bring_unrelated_representations_close(n: int):
    """With n << d some rotation takes any n rows nearly to any others: sqrt(n / 2d), not √2.

    Eigenvalues λ of a Gram matrix of independent rows have mean 1 and variance c = n/d (Marchenko-Pastur), so
    E √λ is 1 - c/8 to first order, ||XᵀY||_* = (1 - c/8)² for X and Y free of each other, and 2 - 2 (1 - c/4)
    is c/2. Only distances of equal n and d can be compared.
    """
    x, y = normalised(0, n, 576), normalised(1, n, 576)
    got = procrustes_distance(torch.from_numpy(x.T @ y), 1.0, 1.0)
    assert got == pytest.approx(np.sqrt(n / (2 * 576)), rel=0.1)
    assert got < np.sqrt(2) / 2


def test_a_constant_representation_has_no_distance():
    assert np.isnan(procrustes_distance(torch.zeros(8, 8, dtype=torch.float64), 0.0, 1.0))
