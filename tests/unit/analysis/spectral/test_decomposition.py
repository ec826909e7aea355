"""The path of a GPU, on the CPU's tensors, against LAPACK's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankdrift.analysis.spectral import decomposition, linalg

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (1, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_device_gives_what_lapack_gives(shape: tuple[int, int], dtype: type) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    expected = linalg.half_system(matrix)
    np.testing.assert_allclose(
        decomposition.device_singular_values(matrix, CPU), expected.sigma, rtol=1e-9, atol=1e-9
    )
    found = decomposition.device_half_system(matrix, CPU)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * expected.vectors, axis=0)), 1, rtol=1e-9)


def test_without_a_gpu_lapack_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    matrix = np.random.default_rng(0).standard_normal((30, 20))
    np.testing.assert_array_equal(decomposition.singular_values(matrix), linalg.singular_values(matrix))
    found, expected = decomposition.singular_system(matrix, 4), linalg.singular_system(matrix, 4)
    np.testing.assert_array_equal(found.left, expected.left)
