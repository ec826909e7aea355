"""What goes wrong when drift of representations is measured naively: each naive formula, beside ours.

Naive formulas are written here as they are found in published code; figures are those of independent
Gaussian representations, d = 576.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation.moments import CrossMoments, centred
from rankdrift.analysis.mathematics.representation.principal import columns_without_top
from rankdrift.analysis.mathematics.representation.similarity import Similarity, compare, side
from rankdrift.analysis.sources.activations import mean_over_tokens

WIDTH = 576


def gaussian(seed: int, n: int, d: int = WIDTH) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(x: Tensor, y: Tensor) -> Similarity:
    inputs = torch.arange(len(x))
    return compare(x, y, inputs, side(x, inputs))


def debiased(x: Tensor, y: Tensor) -> float:
    x, y = centred(x), centred(y)
    xx, xy, yy = (float(CrossMoments.of(a, b).hsic()) for a, b in ((x, x), (x, y), (y, y)))
    return xy / (xx * yy) ** 0.5


@pytest.mark.parametrize(("n", "biased"), [(32, 0.949), (64, 0.900), (128, 0.819), (256, 0.693)])
def test_biased_cka_of_unrelated_representations_is_near_one(n: int, biased: float):
    x, y = gaussian(0, n), gaussian(1, n)
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    naive = (y_c.T @ x_c).norm() ** 2 / ((x_c.T @ x_c).norm() * (y_c.T @ y_c).norm())
    got = ours(x, y)
    assert float(naive) == pytest.approx(biased, abs=0.01)
    assert got.cka_biased == pytest.approx(float(naive), rel=1e-10)
    assert abs(got.cka) < 0.06


def test_a_product_of_traces_is_not_the_denominator():
    """||XᵀY||² / (tr XᵀX tr YᵀY) of X with itself is 1 / its participation ratio, so "drift" is 1 - 1/PR."""
    x = gaussian(0, 2000, 50) * torch.linspace(0.2, 2, 50)
    x_c = x - x.mean(0)
    naive = (x_c.T @ x_c).norm() ** 2 / (x_c.T @ x_c).trace() ** 2
    squares = torch.linalg.svdvals(x_c) ** 2
    participation = squares.sum() ** 2 / squares.square().sum()
    assert float(naive) == pytest.approx(1 / float(participation))
    assert float(naive) < 0.05
    assert ours(x, x.clone()).cka == 1


def test_the_last_batch_is_not_the_data_set():
    """Representations that part ways half-way: a CKA overwritten batch by batch sees only the second half."""
    x = gaussian(0, 400, 20)
    y = torch.cat([x[:200], gaussian(1, 200, 20)])
    last = [debiased(a, b) for a, b in zip(x.split(100), y.split(100), strict=True)][-1]
    assert abs(last) < 0.05
    assert ours(x, y).cka == pytest.approx(debiased(x, y))
    assert ours(x, y).cka > 0.2


def test_a_mean_of_batch_ratios_is_not_the_ratio_of_sums():
    """Batches of one topic each: CKA within batches misses the topics, where all that is alike lies."""
    topics = 5 * gaussian(0, 10, 20).repeat_interleave(20, dim=0)
    x, y = topics + gaussian(1, 200, 20), topics + gaussian(2, 200, 20)
    ratios = [debiased(a, b) for a, b in zip(x.split(20), y.split(20), strict=True)]
    assert abs(np.mean(ratios)) < 0.1
    assert ours(x, y).cka > 0.95


def test_padding_is_no_token():
    """Rows of one real token among seven of padding, which both models see alike: CKA of means over all."""
    mask = torch.zeros(200, 8, dtype=torch.bool)
    mask[:, -1] = True
    lengths = torch.arange(200) % 7 + 1
    padding = torch.ones(20) * 10.0
    x, y = (padding.repeat(200, 8, 1).double() for _ in range(2))
    x[:, -1], y[:, -1] = gaussian(0, 200, 20), gaussian(1, 200, 20)
    counted = [z.sum(dim=1) / lengths[:, None] for z in (x, y)]  # divided by another count than summed
    assert ours(*counted).cka > 0.9
    assert ours(*counted).cosine > 0.9
    got = ours(mean_over_tokens(x, mask), mean_over_tokens(y, mask))
    assert abs(got.cka) < 0.05
    assert abs(got.cosine) < 0.1


def test_a_common_mean_makes_unrelated_representations_look_alike():
    """An offset of five standard deviations: raw cosine .961, centred .000, debiased CKA -.001."""
    x, y = gaussian(0, 2000) + 5, gaussian(1, 2000) + 5
    got = ours(x, y)
    assert got.cosine == pytest.approx(0.961, abs=0.002)
    assert got.cosine_centered == pytest.approx(0, abs=0.003)
    assert got.cka == pytest.approx(0, abs=0.005)


def test_one_dimension_of_large_variance_hides_all_others():
    """One shared dimension, the other 575 independent: CKA .9999; without the top dimensions 0."""
    x, y = gaussian(0, 2000), gaussian(1, 2000)
    x[:, 17] = y[:, 17] = 300 * gaussian(2, 2000, 1)[:, 0]
    columns = columns_without_top(x)
    assert ours(x, y).cka > 0.999
    assert 17 not in columns
    assert len(columns) == WIDTH - 5
    assert abs(ours(x[:, columns], y[:, columns]).cka) < 0.005


def test_pooling_hides_what_happens_to_single_tokens():
    """Tokens of an input that change places: no mean moves, every token does."""
    tokens = gaussian(0, 2000, 12).reshape(200, 10, 12)
    swapped = tokens.roll(1, dims=1)
    mask = torch.ones(200, 10, dtype=torch.bool)
    pooled = ours(mean_over_tokens(tokens, mask), mean_over_tokens(swapped, mask))
    inputs = torch.arange(200).repeat_interleave(10)
    x, y = tokens.flatten(0, 1), swapped.flatten(0, 1)
    assert pooled.cka == pytest.approx(1)
    assert abs(compare(x, y, inputs, side(x, inputs)).cka) < 0.05
