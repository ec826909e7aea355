"""Procrustes distance against scipy's own alignment and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from rankdrift.analysis.mathematics.representation.procrustes import procrustes_distance


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
