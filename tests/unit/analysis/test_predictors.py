"""What predicts forgetting: a quantity that does, and one that only grows with the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankdrift.analysis.comparisons.predictors import ANALYSIS, PREDICTORS, TABLE, compute_all
from rankdrift.analysis.contract import Params

Tables = dict[str, pd.DataFrame]
RUNS = [("full", 0, seed) for seed in (1, 2)]
RUNS += [("lora", rank, seed) for rank in (2, 4, 8, 16, 32) for seed in (1, 2)]
STEPS = [6, 12, 18]


def compute(tables: Tables, folder: Path) -> pd.DataFrame:
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    return compute_all([], Params(cache=folder), folder)[TABLE]


@pytest.fixture(scope="module")
def study(make_tables: Callable[..., Tables]) -> Tables:
    """A study whose runs forget in proportion to the step, each by its factor, as KL does and sigma_1 not."""
    made = make_tables(RUNS, STEPS, 2)
    performance, spectra = made["performance_metrics"], made["svd_analysis_results"]
    for number, run in enumerate(performance.loc[performance["run"] != "base", "run"].unique()):
        factor, unrelated = np.exp(number / 10), np.exp(5 * (number + 1) % 13 / 10)  # rank correlation 0
        rows = performance["run"] == run
        for metric, start in (("nll", 3.1), ("kl_from_base", 0.0)):
            here = rows & (performance["metric"] == metric)
            performance.loc[here, "value"] = start + factor * performance.loc[here, "step"] / 100
        here = spectra["run"] == run
        spectra.loc[here, "sigma1_ratio"] = unrelated * spectra.loc[here, "step"]
    return made


@pytest.fixture
def tables(study: Tables) -> Tables:
    """That study's tables, some of which a test may leave out."""
    return dict(study)


@pytest.fixture(scope="module")
def found(study: Tables, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return compute(study, tmp_path_factory.mktemp("found"))


def pick(table: pd.DataFrame, predictor: str, scope: str = "pooled", points: str = "all") -> pd.Series:
    rows = table.set_index(["scope", "points", "predictor"])
    return rows.loc[(scope, points, predictor)]


def test_a_power_law_is_found(found: pd.DataFrame) -> None:
    """KL proportional to the increase of the NLL: every correlation is 1, whichever runs are drawn."""
    row = pick(found, "kl_from_base")
    assert row[["spearman", "pearson_log", "r2_log"]].tolist() == pytest.approx([1, 1, 1])
    assert row[["spearman_low", "pearson_log_low"]].tolist() == pytest.approx([1, 1])
    assert (row["runs"], row["arms"], row["checkpoints"], row["log_checkpoints"]) == (12, 6, 36, 36)
    assert row["reason"] == ""


def test_what_only_grows_with_the_step_shows_at_the_last_checkpoints(found: pd.DataFrame) -> None:
    """The sigma_1 ratio's factor has nothing to do with forgetting's; along a run both grow."""
    every, last = pick(found, "sigma1_ratio"), pick(found, "sigma1_ratio", points="last")
    assert every["spearman"] > 0.2
    assert last["spearman_low"] < 0 < last["spearman_high"]
    assert (last["runs"], last["checkpoints"]) == (12, 12)


def test_kl_on_prompts_is_a_predictor_where_they_were_scored(
    study: Tables, scored_widely: Callable[[Tables], Tables], tmp_path: Path
) -> None:
    """It is made to be 1.5 times the increase of the NLL."""
    row = pick(compute(scored_widely(study), tmp_path), "prompt_kl")
    assert row[["spearman", "pearson_log"]].tolist() == pytest.approx([1, 1])


def test_values_are_those_of_scipy(tables: Tables, found: pd.DataFrame) -> None:
    row = pick(found, "sigma1_ratio", scope="lora")
    performance, spectra = tables["performance_metrics"], tables["svd_analysis_results"]
    lora = performance[(performance["method"] == "lora") & (performance["metric"] == "nll")]
    nll = lora.set_index(["run", "step"])["value"] - 3.1
    ratio = spectra[spectra["method"] == "lora"].groupby(["run", "step"])["sigma1_ratio"].max()
    ratio = ratio.reindex(nll.index)
    assert row["spearman"] == pytest.approx(stats.spearmanr(nll, ratio).statistic)
    assert row["pearson_log"] == pytest.approx(stats.pearsonr(np.log(nll), np.log(ratio)).statistic)
    assert row["r2_log"] == pytest.approx(row["pearson_log"] ** 2)


def test_every_scope_has_every_predictor(found: pd.DataFrame) -> None:
    assert len(found) == 3 * 2 * (len(PREDICTORS) - 1)  # without prompt_kl: no prompts were scored
    assert not found.duplicated(["scope", "points", "predictor"]).any()
    assert list(found.columns) == list(ANALYSIS.columns[TABLE])
    # conftest's full fine-tuning has no intruders at all
    constant = pick(found, "intruders_left", scope="full")
    assert np.isnan(constant["spearman"])
    assert "undefined: a constant" in constant["reason"]


def test_few_arms_have_no_interval_and_say_so(make_tables: Callable[..., Tables], tmp_path: Path) -> None:
    table = compute(make_tables(RUNS[2:6], STEPS, 2), tmp_path)
    row = pick(table, "kl_from_base")
    assert row["spearman"] == pytest.approx(1)
    assert np.isnan(row[["spearman_low", "spearman_high"]].astype(float)).all()
    assert "2 arms, fewer than 5" in row["reason"]
    assert "leaves out" not in row["reason"]
    assert set(table["scope"]) == {"pooled"}  # one method alone is what is pooled


def test_checkpoints_that_forgot_nothing_have_no_logarithms(tables: Tables, tmp_path: Path) -> None:
    scores = tables["performance_metrics"]
    better = (scores["metric"] == "nll") & (scores["run"] != "base") & (scores["step"] == STEPS[0])
    tables["performance_metrics"] = scores.assign(value=scores["value"].mask(better, 1.0))
    row = pick(compute(tables, tmp_path), "kl_from_base")
    left = better.sum()
    assert row["checkpoints"] - row["log_checkpoints"] == left > 0
    assert f"pearson_log leaves out {left} of {row['checkpoints']} checkpoints" in row["reason"]


def test_a_predictor_that_was_not_measured_has_no_row(tables: Tables, tmp_path: Path) -> None:
    del tables["drift_metrics"]
    assert "drift" not in set(compute(tables, tmp_path)["predictor"])


@pytest.mark.parametrize("missing", ["everything", "the base's score", "general text"])
def test_without_forgetting_there_are_no_rows(tables: Tables, tmp_path: Path, missing: str) -> None:
    performance = tables["performance_metrics"]
    if missing == "everything":
        tables.clear()
    elif missing == "general text":
        tables["performance_metrics"] = performance[performance["task"] != "general_text"]
    else:
        tables["performance_metrics"] = performance[performance["run"] != "base"]
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    assert compute_all([], Params(cache=tmp_path), tmp_path) == {}
