"""What probes add up on one rank, against NumPy and against torch's own optimizer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rankdrift.data.batches import rank_batches_apart
from rankdrift.training.engine import MasterShard
from rankdrift.training.loss import BatchLoss
from rankdrift.training.probes._adapters import product_singular_values
from rankdrift.training.probes._base_weights import largest_singular_value
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import CHUNK, RUN, portions, squares_of
from rankdrift.training.probes.conflict import agreement, products, stride_of
from rankdrift.training.probes.noise import estimates
from rankdrift.training.probes.updates import update_squares


@pytest.mark.parametrize("count", [0, 1, 5, RUN, RUN + 1, CHUNK, 3_000_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_squares_are_as_exact_as_in_fp64(count: int, dtype: torch.dtype) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = float((values.double().numpy() ** 2).sum())
    assert float(squares_of([values])) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_update_is_told_from_the_moments_behind_it(decay: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.nn.Parameter(torch.randn(300_000, generator=generator))
    optimizer = torch.optim.AdamW([weights], lr=0.01, weight_decay=decay, betas=(0.8, 0.95), eps=1e-6)
    for _ in range(3):
        before = weights.detach().clone()
        weights.grad = torch.randn(300_000, generator=generator)
        optimizer.step()
    state = optimizer.state[weights]
    moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
    shard = MasterShard("w", 0, weights.detach(), *moments, 0.01, decay, (0.8, 0.95), 1e-6)
    update, size = update_squares([shard])[0].sqrt().tolist()
    assert update == pytest.approx(float((weights.detach().double() - before.double()).norm()), rel=1e-5)
    assert size == pytest.approx(float(weights.detach().double().norm()), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7), (300, 200), (576, 192)])
def test_the_largest_singular_value(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[0]
    assert float(largest_singular_value(matrix)) == pytest.approx(expected, rel=1e-4)


def test_the_largest_singular_value_of_a_matrix_of_rank_one() -> None:
    matrix = torch.outer(torch.arange(1.0, 40), torch.arange(1.0, 60))
    expected = float(torch.arange(1.0, 40).norm() * torch.arange(1.0, 60).norm())
    assert float(largest_singular_value(matrix)) == pytest.approx(expected, rel=1e-5)
    assert float(largest_singular_value(torch.zeros(4, 3))) == 0


def test_products_have_the_values_of_the_dense_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(5, 40, 4, generator=generator), torch.randn(5, 4, 30, generator=generator)
    dense = np.linalg.svd((left @ right).double().numpy(), compute_uv=False)[:, :4]
    np.testing.assert_allclose(product_singular_values(left, right).numpy(), dense, rtol=2e-5)


def test_factors_that_cancel_leave_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    left, right = torch.randn(1, 40, 4, generator=generator), torch.randn(1, 4, 30, generator=generator)
    both = torch.cat([left, -left], dim=2), torch.cat([right, right], dim=1)
    assert not product_singular_values(*both).any()


def test_levels_add_up() -> None:
    names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    ]
    levels = Levels(names, single=True)
    found = pd.DataFrame({**levels.columns, "value": levels.sums(np.array([1.0, 2.0, 4.0]))})
    assert found.query("level == 'global'")["value"].tolist() == [7]
    assert found.query("level == 'layer'")["value"].tolist() == [3]
    assert found.query("level == 'parameter'").set_index("parameter")["value"].to_dict() == {
        names[0]: 1, names[1]: 2, names[2]: 4,
    }  # fmt: skip


def test_noise_and_gradient_are_found_on_average() -> None:
    """Rows of known covariance: S is its trace and |G|² the square of the mean (arXiv 1812.06162)."""
    generator = np.random.default_rng(5)
    mean, deviation, sizes = np.full(20, 0.3), 2.0, np.array([3, 5, 2, 6])
    found = []
    for _ in range(20_000):
        sums = sizes[:, None] * mean + deviation * np.sqrt(sizes)[:, None] * generator.standard_normal(
            (4, 20)
        )
        weighted = ((sums**2).sum(axis=1) / sizes).sum() / sizes.sum() ** 2
        observed = ((sums.sum(axis=0) / sizes.sum()) ** 2).sum()
        found.append(estimates(weighted, observed, 4, sizes.sum()))
    values = np.array(found)
    errors = values.std(axis=0) / np.sqrt(len(values))
    np.testing.assert_array_less(
        np.abs(values.mean(axis=0) - [20 * deviation**2, (mean**2).sum()]), 4 * errors
    )
    assert np.isnan(estimates(1.0, 1.0, 1, 8)).all()


def test_agreement_is_of_different_halves_alone() -> None:
    generator = np.random.default_rng(6)
    halves = generator.standard_normal((4, 9))  # task 0: a, b; task 1: a, b
    targets = np.array([2.0, 3, 4, 1])
    shares = halves * targets[:, None] / targets.sum()
    gram = products(shares @ shares.T, targets, targets.sum())
    (a, b, c, d) = halves
    inner, first, second, observed, _ = agreement(gram, 0, 1)
    assert inner == pytest.approx(((a + b) / 2) @ ((c + d) / 2))
    assert (first, second) == (pytest.approx(a @ b), pytest.approx(c @ d))
    assert observed == pytest.approx(((a + b) / 2) @ ((a + b) / 2))
    without = np.where(np.arange(4) == 1, 0, targets)
    assert np.isnan(agreement(products(shares @ shares.T, without, 7.0), 0, 1)[0])


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_labels_are_apart(ranks: int, packs: bool) -> None:
    generator = np.random.default_rng(7)
    lengths = generator.integers(3, 30, size=100)
    rows = generator.permutation(100)[:24]
    labels = np.where(np.arange(24) < 7, 0, 2)
    own: list[list[Any]] = [
        rank_batches_apart(rows, labels, lengths, rank, ranks, 60, packs) for rank in range(ranks)
    ]
    assert len({len(batches) for batches in own}) == 1, "every rank passes as many"
    taken = [int(row) for batches in own for batch in batches for row in batch]
    assert sorted(taken) == sorted(rows.tolist()), "each row once"
    label = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    for batches in own:
        for batch in batches:
            assert len({label[int(row)] for row in batch}) <= 1
            put = lengths[batch].sum() if packs or not len(batch) else lengths[batch].max() * len(batch)
            assert put <= 60
    if ranks == 1:
        counts = [sum(label[int(batch[0])] == task for batch in own[0]) for task in (0, 2)]
        assert min(counts) >= 2, "two halves"


def test_a_rank_that_has_no_rows_fills_nothing_up() -> None:
    loss = BatchLoss.__new__(BatchLoss)
    loss.packs = True
    assert loss.padding([[], []]) == 0.0


@pytest.mark.parametrize("elements", [1, 2**22, 2**22 + 1, 124_439_808, 134_515_008, 7_000_000_000])
def test_every_column_is_read(elements: int) -> None:
    stride = stride_of(elements)
    assert elements / stride <= 2**22
    assert all(math.gcd(stride, width) == 1 for width in (576, 768, 1024, 2048, 4096)) or stride == 2


def test_rows_hold_every_element_of_one_tensor_each() -> None:
    generator = torch.Generator().manual_seed(8)
    sizes = [3, 0, RUN, CHUNK - 1, 2 * CHUNK + 5, 700, CHUNK]
    lists = [[torch.randn(size, generator=generator).double() for size in sizes] for _ in range(2)]
    found = torch.zeros(len(sizes), dtype=torch.float64)
    for owners, (first, second) in portions(*lists):
        assert first.shape == second.shape == (len(owners), RUN)
        found.index_add_(0, owners, (first * second).sum(dim=1))
    expected = [float(first @ second) for first, second in zip(*lists, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_updates_of_shards_with_rules_of_their_own() -> None:
    generator = torch.Generator().manual_seed(9)
    shards = []
    for updates, decay, size in [(1, 0.0, 50), (7, 0.1, 3000), (7, 0.0, 1)]:
        moments = torch.randn(size, generator=generator), torch.rand(size, generator=generator)
        weights = torch.randn(size, generator=generator)
        count = torch.tensor(float(updates))
        shards.append(MasterShard("w", 0, weights, *moments, count, 0.01 * updates, decay, (0.8, 0.95), 1e-6))
    together, alone = update_squares(shards), [update_squares([shard])[0] for shard in shards]
    np.testing.assert_allclose(together.numpy(), torch.stack(alone).numpy(), rtol=1e-6)
