"""Bootstrap intervals: equal to SciPy's, covering what they say, and blind to nothing that is clustered."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import stats

from rankdrift.analysis.mathematics.statistics.association import associate, pearson, spearman
from rankdrift.analysis.mathematics.statistics.bootstrap import (
    cluster_bootstrap,
    paired_bootstrap,
    paired_bootstraps,
)
from rankdrift.errors import UserError

DRAWS = 300


def lowest(share: float, draws: int = DRAWS) -> float:
    """Four binomial standard errors below a share."""
    return share - 4 * math.sqrt(share * (1 - share) / draws)


def test_the_interval_of_a_mean_is_scipys() -> None:
    """The mean of paired differences is the mean of one sample, whose BCa interval SciPy gives directly."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=60)
    second = first + generator.exponential(size=60)
    got = paired_bootstrap(first, second, seed=3)
    reference = stats.bootstrap(
        (second - first,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(3)
    ).confidence_interval
    assert got.value == pytest.approx(np.mean(second - first))
    assert (got.low, got.high) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_all_pairs_have_the_intervals_that_they_have_alone() -> None:
    """Five models, weights and documents: from common draws, and one pair after the other with SciPy."""
    generator = np.random.default_rng(1)
    values = generator.exponential(size=(5, 240))
    weights, documents = generator.integers(5, 90, 240).astype(float), np.arange(240) // 4
    pairs = [(0, 1), (4, 2), (3, 3), (1, 0)]
    found = paired_bootstraps(list(values), pairs, weights, documents, resamples=999, seed=2)
    assert found[2].reason.startswith("the same difference")
    totals = [np.bincount(documents, weights=row) for row in (*values, weights)]

    def ratio(a: np.ndarray, b: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return np.sum(b - a, axis=axis) / np.sum(w, axis=axis)

    for pair, got in zip(pairs, found, strict=True):
        if pair[0] == pair[1]:
            continue
        reference = stats.bootstrap(
            (totals[pair[0]], totals[pair[1]], totals[-1]), ratio, paired=True, vectorized=True,
            method="BCa", n_resamples=999, rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        assert (got.low, got.high) == pytest.approx((reference.low, reference.high), rel=1e-9)
    assert (found[3].low, found[3].high) == pytest.approx((-found[0].high, -found[0].low), rel=0.05)


def test_bca_covers_a_skewed_difference() -> None:
    """60 items, exponential differences around .5: at most four standard errors below 95 %."""
    held = []
    for seed in range(DRAWS):
        generator = np.random.default_rng(seed)
        first = 10 * generator.normal(size=60)
        found = paired_bootstrap(first, first + generator.exponential(size=60) - 0.5, resamples=999)
        held.append(found.low <= 0.5 <= found.high)
    assert np.mean(held) >= lowest(0.95)


def test_items_of_a_document_are_no_independent_items() -> None:
    """40 documents of 5 items alike: resampling items covers far too little, resampling documents does."""
    documents = np.repeat(np.arange(40), 5)
    held = {"items": 0, "documents": 0}
    for seed in range(DRAWS):
        generator = np.random.default_rng(seed)
        second = generator.normal(size=40)[documents] + 0.3 * generator.normal(size=200)
        for name, clusters in (("items", None), ("documents", documents)):
            found = paired_bootstrap(np.zeros(200), second, clusters=clusters, resamples=499)
            held[name] += found.low <= 0 <= found.high
    assert held["items"] / DRAWS < 0.75
    assert held["documents"] / DRAWS >= lowest(0.95)


def test_windows_of_text_weigh_as_their_tokens() -> None:
    nll, tokens = np.arange(1.0, 13.0), np.arange(12.0, 0.0, -1.0)
    found = paired_bootstrap(nll, 3 * nll, weights=tokens)
    assert found.value == pytest.approx(2 * nll.sum() / tokens.sum())
    assert found.low < found.value < found.high


def test_documents_are_counted_and_their_order_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 60))
    names = np.array([f"d{n % 20}" for n in range(60)])
    order = np.argsort(names, kind="stable")
    found = paired_bootstrap(first, second, clusters=names)
    assert found.n == 20
    again = paired_bootstrap(first[order], second[order], clusters=names[order])
    assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-12)


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 40))
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(np.zeros(40), "nothing varies"), (np.full(40, 0.1), "nothing varies"), (np.ones(9), "fewer than 10")],
)
def test_what_has_no_interval_says_why(change: np.ndarray, reason: str) -> None:
    first = np.random.default_rng(0).random(len(change))
    found = paired_bootstrap(first, first + change)
    assert found.value == pytest.approx(change.mean())
    assert (found.low, found.high) == (None, None)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "1, 2 and 1 items"),
        (lambda: paired_bootstrap([], []), "0, 0 and 0 items"),
        (lambda: paired_bootstrap([1.0, math.nan], [1.0, 2.0]), "not finite"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], weights=[1.0, 0.0]), "weight not positive"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], clusters=["a"]), "2 items, but documents of 1"),
    ],
)
def test_items_that_do_not_pair_are_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        call()


def related(runs: int, each: int, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bivariate normal rows, 80 % of their variance common to a run, and the run of each."""
    generator = np.random.default_rng(seed)
    names = np.repeat(np.arange(runs), each)
    mixed = math.sqrt(0.8) * generator.normal(size=(runs, 2))[names]
    mixed += math.sqrt(0.2) * generator.normal(size=(len(names), 2))
    return mixed @ np.linalg.cholesky([[1, correlation], [correlation, 1]]).T, names


def test_checkpoints_of_a_run_are_no_independent_points() -> None:
    """Spearman of normal values is 6/pi asin(rho/2). Resampling checkpoints covers far less than 95 %,
    resampling runs about 93 % (benchmarks/interval_coverage.py): percentile intervals of few are narrow."""
    truth, draws = 6 / math.pi * math.asin(0.3), 120
    held = {"checkpoints": 0, "runs": 0}
    for seed in range(draws):
        rows, runs = related(8, 5, 0.6, seed)
        for name, clusters in (("checkpoints", np.arange(len(runs))), ("runs", runs)):
            found = cluster_bootstrap(spearman, rows, clusters, resamples=199)
            held[name] += found.low <= truth <= found.high
    assert held["runs"] / draws >= lowest(0.92, draws)
    assert held["checkpoints"] / draws < 0.85


def once(rows: np.ndarray) -> np.ndarray:
    return np.ones((1, len(rows)), dtype=np.int64)


def test_correlations_are_scipys() -> None:
    """Of the rows themselves, and of rows drawn several times or not at all."""
    rows = np.round(related(6, 6, 0.5, 0)[0], 1)  # with ties
    assert len(np.unique(rows[:, 0])) < len(rows)
    counts = np.random.default_rng(0).integers(0, 4, size=(20, len(rows)))
    counts[0] = 1
    for draw, rank, linear in zip(counts, spearman(rows, counts), pearson(rows, counts), strict=True):
        drawn = np.repeat(rows, draw, axis=0)
        assert rank == pytest.approx(stats.spearmanr(*drawn.T).statistic, rel=1e-12)
        assert linear == pytest.approx(stats.pearsonr(*drawn.T).statistic, rel=1e-12)


@pytest.mark.parametrize("rows", [np.empty((0, 2)), np.eye(2), np.c_[np.arange(5.0), np.full(5, 0.1)]])
def test_a_constant_correlates_with_nothing(rows: np.ndarray) -> None:
    assert math.isnan(spearman(rows, once(rows))[0])
    assert math.isnan(pearson(rows, once(rows))[0])
    assert "undefined" in cluster_bootstrap(spearman, rows, np.arange(len(rows))).reason


def test_an_association_says_what_it_is_taken_over() -> None:
    rows, runs = related(6, 5, 0.9, 0)
    outcome = rows[:, 1].copy()
    outcome[0] = math.nan
    found = associate(rows[:, 0], outcome, runs)
    positive = (rows[1:] > 0).all(axis=1)
    assert (found.clusters, found.checkpoints, found.log_checkpoints) == (6, 29, positive.sum())
    assert found.pearson_log.value == pytest.approx(stats.pearsonr(*np.log(rows[1:][positive]).T).statistic)
    assert found.spearman.low <= found.spearman.value <= found.spearman.high


def test_few_runs_have_a_correlation_and_a_reason() -> None:
    rows, runs = related(4, 10, 0.9, 0)
    found = associate(*rows.T, runs)
    assert math.isfinite(found.spearman.value)
    assert (found.spearman.low, found.spearman.high) == (None, None)
    assert "spearman: 4 arms, fewer than 5" in found.reason


def test_a_statistic_that_most_resamples_leave_undefined_has_no_interval() -> None:
    """One run alone has another value than 0: without it, drawn in a third of the cases, nothing varies."""
    rows, runs = related(6, 5, 0.9, 0)
    rows[5:, 0] = 0
    found = cluster_bootstrap(spearman, rows, runs)
    assert found.low is None
    stated = re.fullmatch(r"undefined in (\d+) % of the resamples of arms", found.reason)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(100 * (5 / 6) ** 6, abs=4.5)  # four standard errors of 1999
