"""The expected rounding error of stored weights against rounding itself."""

from __future__ import annotations

import pytest
import torch

from rankdrift.analysis.sources.rounding import length_rounding_norm, rounding_norm

WEIGHTS = {
    "gaussian": lambda: 0.02 * torch.randn(200, 300),
    "heavy-tailed": lambda: 0.02 * torch.randn(200, 300).pow(3),
    "sizes apart": lambda: torch.randn(200, 300) * torch.logspace(-3, 1, 200)[:, None],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_norm_is_that_of_the_rounding_error(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = WEIGHTS[name]()
    stored = exact.to(dtype).float()
    assert rounding_norm(stored, dtype) == pytest.approx(float((stored - exact).norm()), rel=0.02)


def test_values_below_the_smallest_normal_number_have_its_spacing() -> None:
    exact = 1e-6 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    stored = exact.half().float()
    assert stored.count_nonzero() < stored.numel()  # many were rounded to zero
    assert rounding_norm(stored, torch.float16) == pytest.approx(float((stored - exact).norm()), rel=0.02)


def test_bfloat16_leaves_the_share_measured_on_model_weights() -> None:
    # .0017 of ||W||: docs/architecture.md, bf16_floor_ratio
    weights = torch.randn(400, 400, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    share = rounding_norm(weights, torch.bfloat16) / float(weights.norm())
    assert share == pytest.approx(0.0017, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exact_formats_leave_nothing(dtype: torch.dtype) -> None:
    assert rounding_norm(torch.randn(3, 3), dtype) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounded_lengths_move_whole_rows(dtype: torch.dtype) -> None:
    directions = torch.nn.functional.normalize(torch.randn(500, 64).double(), dim=1)
    lengths = torch.rand(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 3
    error = lengths.to(dtype).double()[:, None] * directions - lengths[:, None] * directions
    found = length_rounding_norm(lengths.to(dtype).float(), dtype)
    assert found == pytest.approx(float(error.norm()), rel=0.1)
