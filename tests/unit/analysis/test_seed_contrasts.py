"""Means and contrasts over seeds: planted differences, Holm's families, and the negative control."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankdrift.analysis.comparisons.seed_contrasts import ANALYSIS, CONTRASTS, MEANS, compute_all
from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.statistics.seeds import minimum_detectable_difference

Tables = dict[str, pd.DataFrame]
SEEDS = (1, 2, 3)
RUNS = [("full", 0, seed) for seed in SEEDS] + [("lora", 4, seed) for seed in SEEDS]
FULL = {"accuracy": [0.80, 0.84, 0.85], "nll": [3.20, 3.30, 3.10]}
LORA = {"accuracy": [0.70, 0.75, 0.77], "nll": [3.21, 3.29, 3.12]}
NOT_LEADING = {"perplexity", "kl_from_base", "top1_agreement"}


@pytest.fixture(scope="module")
def study(make_tables: Callable[..., Tables]) -> pd.DataFrame:
    """Two arms of three seeds and two steps; at the second step the values above."""
    table = make_tables(RUNS, [6, 12], 1)["performance_metrics"]
    for arm, values in (("full", FULL), ("lora-r4", LORA)):
        for metric, of_seeds in values.items():
            for seed, value in zip(SEEDS, of_seeds, strict=True):
                rows = (table["run"] == f"{arm}-seed{seed}") & (table["step"] == 12)
                table.loc[rows & (table["metric"] == metric), "value"] = value
    return table


def compute(performance: pd.DataFrame, folder: Path) -> Tables:
    performance.to_parquet(folder / "performance_metrics.parquet")
    return compute_all([], Params(cache=folder), folder)


@pytest.fixture
def performance(study: pd.DataFrame) -> pd.DataFrame:
    """A copy of it, to be changed."""
    return study.copy()


@pytest.fixture(scope="module")
def found(study: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of that study as it is."""
    return compute(study, tmp_path_factory.mktemp("found"))


def pick(table: pd.DataFrame, metric: str, checkpoint: str = "last", **wanted: object) -> pd.Series:
    rows = table[(table["metric"] == metric) & (table["checkpoint"] == checkpoint)]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_means_have_t_intervals_over_seeds(found: Tables) -> None:
    row = pick(found[MEANS], "accuracy", arm="lora-r4")
    low, high = stats.t.interval(0.95, 2, np.mean(LORA["accuracy"]), stats.sem(LORA["accuracy"]))
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([np.mean(LORA["accuracy"]), low, high])
    assert row["stdev"] == pytest.approx(np.std(LORA["accuracy"], ddof=1))
    assert (row["seeds"], row["step"], row["method"], row["rank"]) == (3, 12, "lora", 4)


def test_contrasts_are_paired_by_seed(found: Tables) -> None:
    row = pick(found[CONTRASTS], "accuracy")
    test = stats.ttest_rel(FULL["accuracy"], LORA["accuracy"])
    assert (row["arm"], row["other_arm"], row["seeds"]) == ("full", "lora-r4", 3)
    assert row["difference"] == pytest.approx(0.09)
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()))
    spread = np.std(np.subtract(FULL["accuracy"], LORA["accuracy"]), ddof=1)
    assert row["minimum_detectable"] == pytest.approx(spread * minimum_detectable_difference(3))
    # of chi-squared with two degrees, whose distribution is 1 - exp(-x / 2)
    ends = [math.sqrt(1 / -math.log(share)) for share in (0.025, 0.975)]
    ends_found = row[["minimum_detectable_low", "minimum_detectable_high"]].tolist()
    assert ends_found == pytest.approx([end * row["minimum_detectable"] for end in ends])


def test_the_order_of_rows_does_not_matter(performance: pd.DataFrame, found: Tables, tmp_path: Path) -> None:
    """Seeds are paired by their number, not by where they stand."""
    wanted = pick(found[CONTRASTS], "accuracy")
    shuffled = performance.sample(frac=1, random_state=1)
    assert pick(compute(shuffled, tmp_path)[CONTRASTS], "accuracy")["p_value"] == wanted["p_value"]


def test_p_values_are_adjusted_over_the_tasks(found: Tables) -> None:
    """The family is the task's accuracy and general text's NLL: the smaller p doubles, the larger stays."""
    contrasts = found[CONTRASTS]
    accuracy, nll = (pick(contrasts, metric) for metric in ("accuracy", "nll"))
    assert accuracy["p_value"] < nll["p_value"]
    assert accuracy["p_holm"] == pytest.approx(2 * accuracy["p_value"])
    assert nll["p_holm"] == pytest.approx(max(nll["p_value"], accuracy["p_holm"]))
    others = contrasts[contrasts["metric"].isin(NOT_LEADING)]
    assert others["p_holm"].isna().all()


def test_runs_of_other_tasks_leave_a_comparison_alone(performance: pd.DataFrame, tmp_path: Path) -> None:
    """One that ends later, and was scored on general text there: its step and family are its own."""
    whole = compute(performance, tmp_path)[CONTRASTS]
    later = performance[performance["run"] == "full-seed1"].assign(run="long-seed1", tasks="other")
    later = later[later["task"] == "general_text"].assign(step=later["step"] * 10)
    found = compute(pd.concat([performance, later]), tmp_path)
    for metric in ("accuracy", "nll"):
        row, alone = (pick(table, metric, arm="full") for table in (found[CONTRASTS], whole))
        assert (row["p_holm"], row["step"]) == (alone["p_holm"], 12)
    assert pick(found[MEANS], "nll", arm="long")["step"] == 120
    assert pick(found[MEANS], "nll", arm="full")["step"] == 12


def test_last_checkpoints_are_one_family_at_any_step(performance: pd.DataFrame, tmp_path: Path) -> None:
    """At a run's last step its accuracy is undefined: the others' are of step 12, general text's of 18."""
    more = performance[(performance["run"] == "full-seed1") & (performance["step"] == 12)].assign(step=18)
    more.loc[more["metric"] == "accuracy", "value"] = np.nan
    contrasts = compute(pd.concat([performance, more]), tmp_path)[CONTRASTS]
    accuracy, nll = (pick(contrasts, metric) for metric in ("accuracy", "nll"))
    assert (accuracy["step"], accuracy["seeds"], nll["step"], nll["seeds"]) == (12, 2, 18, 3)
    expected = sorted([2 * accuracy["p_value"], nll["p_value"]])
    assert [accuracy["p_holm"], nll["p_holm"]] == pytest.approx(expected, rel=1e-12)


def test_the_control_is_between_seeds_of_one_arm(found: Tables) -> None:
    """Accuracies differ by .04, .05, .01 between full's seeds and by .05, .07, .02 between LoRA's."""
    contrasts = found[CONTRASTS]
    accuracy, nll = (pick(contrasts, metric) for metric in ("accuracy", "nll"))
    assert (accuracy["control_pairs"], accuracy["control_share"]) == (6, 0)
    assert (accuracy["control_median"], accuracy["control_largest"]) == pytest.approx((0.045, 0.07))
    assert nll["control_share"] == 1  # -.007 is less than any two seeds differ


def test_every_step_and_the_last_are_compared(found: Tables) -> None:
    contrasts = found[CONTRASTS]
    steps = contrasts[contrasts["metric"] == "accuracy"][["checkpoint", "step"]].to_numpy().tolist()
    assert steps == [["step", 6], ["step", 12], ["last", 12]]
    same = [pick(contrasts, "accuracy", at, step=12)["p_value"] for at in ("step", "last")]
    assert same[0] == same[1]
    alike = pick(contrasts, "accuracy", "step", step=6)  # conftest's seeds agree exactly
    assert np.isnan(alike["p_value"])
    assert "same value" in alike["reason"]
    assert np.isnan(alike["minimum_detectable"])


def test_a_spread_of_rounding_alone_detects_nothing(performance: pd.DataFrame, tmp_path: Path) -> None:
    """Differences of .1 by three seeds, which differ in their last digits: stdev 1e-17 is no spread."""
    for arm, scores in (("full", [0.2, 0.3, 0.4]), ("lora-r4", [0.1, 0.2, 0.3])):
        for seed, score in zip(SEEDS, scores, strict=True):
            rows = (performance["run"] == f"{arm}-seed{seed}") & (performance["metric"] == "accuracy")
            performance.loc[rows, "value"] = score
    row = pick(compute(performance, tmp_path)[CONTRASTS], "accuracy")
    assert 0 < row["stdev"] < 1e-16
    assert np.isnan(row["minimum_detectable"])
    assert "same value" in row["reason"]


def test_a_run_that_ended_early_is_last_where_it_ended(performance: pd.DataFrame, tmp_path: Path) -> None:
    ended = performance[~((performance["run"] == "full-seed1") & (performance["step"] == 12))]
    contrasts = compute(ended, tmp_path)[CONTRASTS]
    assert pick(contrasts, "accuracy", "step", step=12)["seeds"] == 2
    assert pick(contrasts, "accuracy")["seeds"] == 3


def test_one_seed_has_means_and_reasons(performance: pd.DataFrame, tmp_path: Path) -> None:
    one = performance[performance["run"].isin(["base", "full-seed1", "lora-r4-seed1"])]
    found = compute(one, tmp_path)
    row = pick(found[CONTRASTS], "accuracy")
    assert row["difference"] == pytest.approx(0.10)
    assert row[["low", "high", "p_value", "p_holm", "stdev", "control_median"]].isna().all()
    assert "one seed" in row["reason"]
    assert "no negative control" in row["reason"]
    assert found[MEANS]["reason"].str.contains("one seed").all()


def test_an_undefined_score_is_left_out(performance: pd.DataFrame, tmp_path: Path) -> None:
    rows = (performance["run"] == "lora-r4-seed2") & (performance["metric"] == "accuracy")
    performance.loc[rows, "value"] = np.nan
    found = compute(performance, tmp_path)
    assert pick(found[CONTRASTS], "accuracy")["seeds"] == 2
    assert pick(found[MEANS], "accuracy", arm="lora-r4")["seeds"] == 2


def test_one_arm_has_means_and_no_contrasts(performance: pd.DataFrame, tmp_path: Path) -> None:
    found = compute(performance[performance["method"] == "full"], tmp_path)
    assert len(found[MEANS])
    assert found[CONTRASTS].empty
    for name, table in found.items():
        assert list(table.columns) == list(ANALYSIS.columns[name])


def test_nothing_scored_is_no_error(performance: pd.DataFrame, tmp_path: Path) -> None:
    assert compute_all([], Params(cache=tmp_path), tmp_path) == {}
    assert compute(performance[performance["run"] == "base"], tmp_path) == {}


def test_means_over_tasks_have_intervals_over_seeds(
    make_tables: Callable[..., Tables], scored_widely: Callable[[Tables], Tables], tmp_path: Path
) -> None:
    performance = scored_widely(make_tables(RUNS, [6, 12], 1))["performance_metrics"]
    macro = performance["metric"] == "macro_average"
    for seed, value in zip(SEEDS, (0.5, 0.6, 0.7), strict=True):
        performance.loc[macro & (performance["seed"] == seed), "value"] = value
    retention = (performance["role"] == "retention") & (performance["method"] == "lora")
    performance.loc[retention, "value"] += performance.loc[retention, "seed"] ** 2 / 100
    found = compute(performance, tmp_path)
    row = pick(found[MEANS], "macro_average", arm="full")
    assert row["mean"] == pytest.approx(0.6)
    assert row["high"] - row["mean"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert row["role"] == "trained"
    assert pick(found[MEANS], "mean_accuracy", arm="full")["role"] == "retention"
    # other retention tasks have p-values, but are not of the family
    alone = pick(found[CONTRASTS], "accuracy", task="hellaswag")
    assert 0 < alone["p_value"] < 1
    assert np.isnan(alone["p_holm"])
    mean = pick(found[CONTRASTS], "mean_accuracy")
    assert mean["p_holm"] >= mean["p_value"]
