"""Gradient sums and what is estimated from them, against NumPy, published formulas and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rankdrift.analysis.mathematics.gradients import noise
from rankdrift.analysis.mathematics.gradients.noise import (
    alignment,
    jackknife_stderr,
    noise_scale,
    reliability,
    sample,
)
from rankdrift.analysis.mathematics.gradients.products import Shards, gradient_sums, levels, statistics
from rankdrift.models.families import Cell

Array = np.ndarray


SHARDS = Shards(tasks=("a", "a", "b", "b", "b"), rows=(2, 1, 2, 2, 1), targets=(5, 1, 8, 2, 5))


def summed_losses(elements: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).normal(0.2, 1.0, (5, elements)).astype(np.float32)
    values[:, : elements // 4] = 0
    return values


def mean_loss_gradients(summed: Array) -> dict[str, Array]:
    """The gradient of a mean over targets: summed losses over targets, whichever shards they come from."""
    exact = summed.astype(np.float64)
    return {"a": exact[:2].sum(0) / 6, "b": exact[2:].sum(0) / 15}


def test_statistics_are_numpys_of_the_gradient_of_the_mean_loss() -> None:
    parts = {
        Cell(0, "attention"): summed_losses(70_000),  # more than one chunk
        Cell(0, "mlp"): summed_losses(40, seed=1),
        Cell(-1, "head"): summed_losses(13, seed=2),
    }
    sums = levels({cell: gradient_sums(torch.tensor(part), SHARDS) for cell, part in parts.items()})
    assert len(sums) == 3 + 1 + 3 + 1
    for key, members in {
        ("cell", Cell(0, "mlp")): [1],
        ("layer", Cell(0, "")): [0, 1],
        ("group", Cell(-1, "head")): [2],
        ("global", Cell(-1, "")): [0, 1, 2],
    }.items():
        together = np.concatenate([list(parts.values())[member] for member in members], axis=1)
        for task, gradient in mean_loss_gradients(together).items():
            found = statistics(sums[key], SHARDS, task)
            assert found.numel == gradient.size
            assert found.l2_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
            assert found.mean_abs == pytest.approx(np.abs(gradient).mean(), rel=1e-12)
            assert found.std == pytest.approx(gradient.std(), rel=1e-12)
            assert found.zero_fraction == (gradient == 0).mean()


def test_inner_products_are_those_of_the_gradients_of_the_mean_losses() -> None:
    summed = summed_losses(300)
    sums, gradients = gradient_sums(torch.tensor(summed), SHARDS), mean_loss_gradients(summed)
    first, second = (
        sample(sums.gram[np.ix_(SHARDS.of(t), SHARDS.of(t))], SHARDS.sizes(t), SHARDS.targets_of(t))
        for t in SHARDS.names
    )
    found = alignment(sums.gram[SHARDS.of("a")][:, SHARDS.of("b")], first, second)
    norms = [np.linalg.norm(gradients[task]) for task in "ab"]
    inner = gradients["a"] @ gradients["b"]
    assert found.inner_product == pytest.approx(inner, rel=1e-12)
    assert found.cosine == pytest.approx(inner / np.prod(norms), rel=1e-12)
    assert first.observed[0] == pytest.approx(norms[0] ** 2, rel=1e-12)


def gram_of(shards: list[Array]) -> Array:
    """Inner products of the sums of each shard's rows."""
    sums = np.stack([shard.sum(axis=0) for shard in shards])
    return sums @ sums.T


def drawn(truth: Array, spread: float, sizes: list[int], generator: np.random.Generator) -> list[Array]:
    """Rows whose gradients are truth plus Gaussian noise: S = spread² d."""
    return [generator.normal(truth, spread, (size, len(truth))) for size in sizes]


def estimates(shards: list[Array]) -> noise.Sample:
    """Of rows with as many targets each."""
    sizes = np.array([len(shard) for shard in shards], dtype=float)
    return sample(gram_of(shards), sizes, 3 * sizes)


def test_equal_shards_give_the_published_estimators() -> None:
    shards = drawn(np.linspace(-1, 1, 20), 2.0, [3] * 4, np.random.default_rng(0))
    small = np.mean([np.sum(shard.mean(axis=0) ** 2) for shard in shards])
    big = np.sum(np.concatenate(shards).mean(axis=0) ** 2)
    # arXiv 1812.06162, equations A.2 and A.3, with B_small = 3 and B_big = 12
    found = estimates(shards)
    assert found.square[0] == pytest.approx((12 * big - 3 * small) / (12 - 3))
    assert found.trace[0] == pytest.approx((small - big) / (1 / 3 - 1 / 12))


@pytest.mark.parametrize("left_out", range(4))
def test_what_is_left_without_a_shard_is_what_the_others_give(left_out: int) -> None:
    shards = drawn(np.ones(5), 1.0, [3, 1, 2, 2], np.random.default_rng(0))
    found = estimates(shards)
    others = estimates(shards[:left_out] + shards[left_out + 1 :])
    for name in ("weight", "observed", "square", "trace"):
        assert getattr(found, name)[1 + left_out] == pytest.approx(getattr(others, name)[0])


def test_two_shards_give_the_split_half_formula() -> None:
    generator = np.random.default_rng(1)
    i, j = drawn(np.ones(6), 1.0, [4, 4], generator), drawn(np.arange(6.0), 1.0, [5, 5], generator)
    (i_a, i_b), (j_a, j_b) = ([half.mean(axis=0) for half in task] for task in (i, j))
    cross = np.mean([i_a @ j_a, i_a @ j_b, i_b @ j_a, i_b @ j_b])
    gram = gram_of([*i, *j])
    found = alignment(gram[:2, 2:], estimates(i), estimates(j))
    assert found.cosine_corrected == pytest.approx(cross / math.sqrt((i_a @ i_b) * (j_a @ j_b)))
    assert found.reason == noise.TWO_SHARDS
    assert math.isnan(found.cosine_corrected_stderr)


TRIALS = 400
TRUTH = {"i": np.array([1.0, *[0.0] * 39]), "j": np.array([0.6, 0.8, *[0.0] * 38])}


def trials(spread: float) -> list[tuple[noise.Alignment, noise.NoiseScale]]:
    """Two tasks whose gradients have norm 1 and cosine 0.6, from 32 noisy rows each, many times."""
    generator = np.random.default_rng(2)
    found = []
    for _ in range(TRIALS):
        i, j = (drawn(TRUTH[task], spread, [4] * 8, generator) for task in "ij")
        cross = gram_of([*i, *j])[:8, 8:]
        found.append((alignment(cross, estimates(i), estimates(j)), noise_scale(estimates(i))))
    return found


@pytest.fixture(scope="module")
def noisy() -> list[tuple[noise.Alignment, noise.NoiseScale]]:
    """Rows with S = 16, half as large as the gradient's share of 32 rows: |g|² = 1 + 16 / 32."""
    return trials(math.sqrt(16 / 40))


def within(values: list[float], truth: float) -> None:
    """Assert that the mean of independent draws is the truth, up to 4 standard errors of the mean."""
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values, ddof=1) / math.sqrt(len(values)))


def test_noise_shrinks_the_observed_cosine_and_not_the_corrected_one(noisy) -> None:
    observed = [found.cosine for found, _ in noisy]
    assert np.mean(observed) < 0.45  # the truth is 0.6, its attenuation by S / n on both sides 0.4
    within(observed, 0.6 / 1.5)
    corrected = [found.cosine_corrected for found, _ in noisy]
    # a ratio of unbiased estimates: its own bias is of the order of its variance
    assert np.mean(corrected) == pytest.approx(0.6, abs=np.var(corrected))
    within([found.inner_product for found, _ in noisy], 0.6)


def test_the_attenuation_is_the_root_of_the_two_reliabilities() -> None:
    generator = np.random.default_rng(3)
    i, j = (drawn(TRUTH[task], 0.5, [4] * 8, generator) for task in "ij")
    cross = gram_of([*i, *j])[:8, 8:]
    found = alignment(cross, estimates(i), estimates(j))
    alone = [reliability(estimates(task)) for task in (i, j)]
    attenuation = math.sqrt(alone[0].cosine * alone[1].cosine)
    assert found.cosine == pytest.approx(found.cosine_corrected * attenuation)
    assert alone[0].inner_product == estimates(i).square[0]
    assert alone[0].cosine_corrected == 1.0


def test_the_noise_is_measured_without_bias(noisy) -> None:
    within([found.gradient_square for _, found in noisy], 1.0)
    within([found.noise_trace for _, found in noisy], 16.0)


def test_the_noise_scale_is_the_simulated_one_within_its_error() -> None:
    shards = drawn(TRUTH["i"], math.sqrt(16 / 40), [128] * 8, np.random.default_rng(4))
    found = noise_scale(estimates(shards))
    assert found.noise_scale == pytest.approx(16.0, abs=4 * found.noise_scale_stderr)
    assert found.noise_scale_stderr < 2.0
    assert found.reason == ""


def test_standard_errors_are_the_spread_of_repeated_draws(noisy) -> None:
    # a jackknife variance over 8 shards is a scaled chi-square of 7 degrees: its mean over the draws is known
    # to a few per cent, and it may exceed the true variance, never fall short of it (Efron and Stein 1981)
    for which, name in ((0, "inner_product"), (1, "gradient_square"), (1, "noise_trace")):
        spread = np.std([getattr(pair[which], name) for pair in noisy])
        stated = math.sqrt(np.mean([getattr(pair[which], f"{name}_stderr") ** 2 for pair in noisy]))
        assert 0.9 * spread < stated < 1.25 * spread, name


def test_shards_of_unequal_size_are_unbiased_too() -> None:
    generator = np.random.default_rng(5)
    found = [estimates(drawn(TRUTH["i"], 1.0, [1, 5, 2, 8], generator)) for _ in range(1000)]
    within([each.square[0] for each in found], 1.0)
    within([each.trace[0] for each in found], 40.0)


def rows_of_unequal_length(generator: np.random.Generator) -> tuple[Array, Array]:
    """32 rows of 1 to 40 targets: each target's gradient is the truth and noise of its own."""
    targets = generator.integers(1, 41, size=32).astype(float)
    noisy = np.sqrt(targets)[:, None] * generator.normal(0, 1.0, (32, 40))
    return targets[:, None] * TRUTH["i"] + noisy, targets


def ratio_sample(summed: Array, targets: Array) -> noise.Sample:
    """In shards of 4 rows."""
    shards = summed.reshape(8, 4, -1).sum(axis=1) / targets.mean()
    return sample(shards @ shards.T, np.full(8, 4.0), targets.reshape(8, 4).sum(axis=1))


def test_the_noise_of_a_ratio_is_that_of_repeated_draws() -> None:
    """Taken as fixed, the targets of a row put their own spread into S, in the direction of the gradient."""
    generator = np.random.default_rng(9)
    draws = [rows_of_unequal_length(generator) for _ in range(600)]
    means = np.stack([summed.sum(axis=0) / targets.sum() for summed, targets in draws])
    samples = [ratio_sample(*draw) for draw in draws]
    variance = means.var(axis=0, ddof=1).sum()
    assert np.mean([found.trace[0] for found in samples]) / 32 == pytest.approx(variance, rel=0.05)
    assert np.mean([found.square[0] for found in samples]) == pytest.approx(1.0, abs=0.02)
    fixed = [estimates(list((summed / targets.mean()).reshape(8, 4, -1))) for summed, targets in draws]
    assert np.mean([found.trace[0] for found in fixed]) / 32 > 1.1 * variance


def test_without_a_shard_the_ratio_has_the_others_targets() -> None:
    summed, targets = rows_of_unequal_length(np.random.default_rng(10))
    found = ratio_sample(summed, targets)
    others = summed[4:].sum(axis=0) / targets[4:].sum()
    assert found.observed[1] == pytest.approx(others @ others)
    shards = summed[4:].reshape(7, 4, -1).sum(axis=1) / targets[4:].mean()
    alone = sample(shards @ shards.T, np.full(7, 4.0), targets[4:].reshape(7, 4).sum(axis=1))
    assert found.trace[1] == pytest.approx(alone.trace[0])
    assert found.square[1] == pytest.approx(alone.square[0])


def test_the_jackknife_of_means_is_their_standard_error() -> None:
    generator = np.random.default_rng(8)
    first, second = generator.normal(size=7), generator.normal(size=11)
    without = [(values.sum() - values) / (len(values) - 1) for values in (first, second)]
    expected = [np.var(values, ddof=1) / len(values) for values in (first, second)]
    assert jackknife_stderr(without[0]) == pytest.approx(math.sqrt(expected[0]))
    assert jackknife_stderr(*without) == pytest.approx(math.sqrt(sum(expected)))
    assert math.isnan(jackknife_stderr(np.array([1.0])))


OPPOSED = [np.array([[1.0, 0.0]]), np.array([[-1.0, 0.2]]), np.array([[0.0, -0.3]])]
FEW = [np.array([[1.0, 0.0]]), np.array([[0.9, 0.1]])]
ODD = [np.array([[1.0]]), np.array([[1.0]]), np.array([[-0.4]])]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("shards", "reason", "scale_known"),
    [
        ([np.zeros((2, 3))] * 3, noise.ZERO, False),
        ([np.ones((1, 3))], noise.ONE_SHARD, False),
        (OPPOSED, noise.NOISE, False),
        (FEW, noise.TWO_SHARDS, True),
        (ODD, noise.FRAGILE, True),
        ([np.ones((2, 3)), np.full((2, 3), 1.1), np.ones((1, 3))], "", True),
    ],
)
def test_what_cannot_be_known_says_why(shards: list[Array], reason: str, scale_known: bool) -> None:
    found = noise_scale(estimates(shards))
    assert found.reason == reason
    assert math.isnan(found.noise_scale) != scale_known
    assert math.isnan(found.noise_scale_stderr) == bool(reason)
    own = reliability(estimates(shards))
    assert own.reason == ("" if reason == noise.FRAGILE else reason)
    numbers = [value for name, value in vars(own).items() if name not in ("conflict", "reason")]
    assert any(map(math.isnan, numbers)) == bool(own.reason)
    assert math.isnan(own.cosine_corrected) != scale_known
    known = [np.ones((1, shards[0].shape[1]))] * 4
    cross = gram_of([*shards, *known])[: len(shards), len(shards) :]
    both = alignment(cross, estimates(shards), estimates(known))
    assert both.reason == reason
    assert math.isnan(both.cosine_corrected) != scale_known
    assert math.isnan(both.cosine) == (reason == noise.ZERO)


def test_a_conflict_is_a_negative_inner_product() -> None:
    i, j = [np.ones((1, 2))] * 3, [np.array([[-1.0, 0.5]])] * 3
    for other, conflict in ((j, True), (i, False)):
        found = alignment(gram_of([*i, *other])[:3, 3:], estimates(i), estimates(other))
        assert found.conflict is conflict
