"""What a GPU gives of a matrix, against LAPACK on the CPU: values, vectors up to sign, intruder counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.spectral import decomposition, intruders, linalg
from rankdrift.analysis.mathematics.spectral.decomposition import DenseSum, DeviceSum
from rankdrift.analysis.mathematics.spectral.linalg import HalfSystem, SingularSystem
from rankdrift.analysis.mathematics.spectral.lowrank import LowRankSum
from rankdrift.analysis.measures import spectra
from rankdrift.analysis.sources.subjects import Subject

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU"),
]

SHAPES = [(512, 512), (1024, 320), (320, 1024)]
TOP, THRESHOLD, PLANTED = 10, 0.5, 3
TOLERANCE = 1e-9
"""Relative for values, absolute for cosines. Eigenvalues of a Gram matrix of order n err by about n eps of
the largest, at most 1e-10 of the smallest value here; neighbouring vectors turn by that over the gap between
them, and cosines err by the square of the angle."""


def planted(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return a float32 matrix whose values fall evenly from 1 to 0.1, in random directions."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((size, min(shape))))[0] for size in shape)
    return ((left * np.linspace(1, 0.1, min(shape))) @ right.T).astype(np.float32)


def update(shape: tuple[int, int]) -> np.ndarray:
    """Return noise and three random directions, each larger than all of the base's singular values."""
    generator = np.random.default_rng(1)
    left, right = (np.linalg.qr(generator.standard_normal((size, PLANTED)))[0] for size in shape)
    return (left * np.array([3.0, 2.5, 2.0])) @ right.T + 1e-3 * generator.standard_normal(shape)


def counts(base: HalfSystem, system: SingularSystem) -> list[float]:
    return [
        intruders.intruders(
            intruders.best_cosines(base.components(vectors[:, :TOP], side)), system.sigma[:TOP], THRESHOLD
        ).count
        for side, vectors in (("left", system.left), ("right", system.right))
    ]


def assert_same_system(found: SingularSystem, expected: SingularSystem) -> None:
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=TOLERANCE)
    for one, other in ((found.left, expected.left), (found.right, expected.right)):
        np.testing.assert_allclose(np.abs(np.sum(one * other, axis=0)), 1, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_base_is_decomposed_as_on_the_cpu(shape: tuple[int, int]) -> None:
    matrix = planted(shape, 0)
    found, expected = decomposition.half_system(matrix), linalg.half_system(matrix)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=TOLERANCE)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * expected.vectors, axis=0)), 1, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dense_update_is_measured_as_on_the_cpu(shape: tuple[int, int]) -> None:
    base, change = linalg.half_system(planted(shape, 0)), update(shape)
    found, expected = decomposition.dense_sum(base, change), DenseSum(base, change)
    assert isinstance(found, DeviceSum)
    # the smallest values of the noise are 1e-5 of the largest value: rounding takes up to 1e-6 of them
    np.testing.assert_allclose(found.update_values(), expected.update_values(), rtol=TOLERANCE, atol=1e-8)
    systems = found.singular_system(TOP), expected.singular_system(TOP)
    assert_same_system(*systems)
    assert counts(base, systems[0]) == counts(base, systems[1]) == [PLANTED, PLANTED]
    # the CPU's products are in float32
    np.testing.assert_allclose(found.changes(), expected.changes(), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_measured_as_on_the_cpu(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    base = linalg.half_system(planted(shape, 0))
    left, right = generator.standard_normal((shape[0], 4)) / 30, generator.standard_normal((4, shape[1])) / 30
    found = LowRankSum(base, left, right).singular_system(TOP)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = LowRankSum(base, left, right).singular_system(TOP)
    assert_same_system(found, expected)
    assert counts(base, found) == counts(base, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_tables_of_a_matrix_are_those_of_the_cpu(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = planted(shape, 0)
    for name, matrix in (("base", base), ("tuned", (base + update(shape)).astype(np.float32))):
        (tmp_path / name).mkdir()
        stored = {"model.layers.0.self_attn.q_proj.weight": matrix}
        save_file(stored, tmp_path / name / "model.safetensors")
    subject = Subject("run", "full", 0, (), 0, 1, tmp_path / "base", tmp_path / "tuned")
    found = spectra.measure(subject, Params(cache=tmp_path / "gpu"), "0000.q_proj")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = spectra.measure(subject, Params(cache=tmp_path / "cpu"), "0000.q_proj")
    assert found.keys() == expected.keys()
    for table, rows in found.items():
        # the signs of single vectors are arbitrary, and this column is about them
        compared = [column for column in rows.columns if column != "naive_drift"]
        pd.testing.assert_frame_equal(rows[compared], expected[table][compared], rtol=1e-5, atol=1e-6)


def test_matrices_leave_no_memory_behind() -> None:
    base, change = linalg.half_system(planted((2000, 64), 0)), update((2000, 64))
    held = []
    for _ in range(2):  # libraries allocate what they keep at their first use
        decomposition.dense_sum(base, change).singular_system(TOP)
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1]
