"""Learning against forgetting: trajectories with known crossings, and the tables of a made-up study."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.comparisons.comparisons import ANALYSIS, MEANS, PLANE, SEEDS, compute_all
from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.statistics.intervals import t_interval
from rankdrift.analysis.mathematics.statistics.matching import Trajectory, common_levels
from rankdrift.analysis.sources.arms import arm_pairs, arms_of
from rankdrift.analysis.sources.checkpoint_summary import checkpoint_summaries

Tables = dict[str, pd.DataFrame]
RUNS = [("full", 0, 1), ("full", 0, 2), ("lora", 4, 1), ("lora", 4, 2), ("lora", 4, 3)]
STEPS = [6, 12, 18]


def write(tables: Tables, folder: Path) -> Path:
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder


def compute(tables: Tables, folder: Path) -> Tables:
    return compute_all([], Params(cache=folder), write(tables, folder))


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (1.0, 10.0),
        (2.0, 15.0),
        (3.0, 20.0),
        (4.0, 30 + 10 * 2 / 3),
        (5.0, 40.0),
        (0.9, math.nan),
        (5.1, math.nan),
    ],
)
def test_the_outcome_at_the_first_crossing(level: float, expected: float) -> None:
    """1, 3, 2, 5: level 4 is crossed between the third and the fourth, level 3 is reached at the second."""
    trajectory = Trajectory(np.array([1.0, 3.0, 2.0, 5.0]), np.array([10.0, 20.0, 30.0, 40.0]))
    # 2 + 3 t = 4 at t = 2/3
    assert trajectory.at(level) == pytest.approx(expected, nan_ok=True)


def test_levels_lie_where_every_trajectory_has_been() -> None:
    one = Trajectory(np.array([1.0, 4.0, 3.0]), np.zeros(3))
    other = Trajectory(np.array([2.0, 6.0]), np.zeros(2))
    assert common_levels([one, other], 4).tolist() == [2.5, 3.0, 3.5, 4.0]
    assert not any(math.isnan(t.at(level)) for t in (one, other) for level in common_levels([one, other], 7))


@pytest.mark.parametrize("other", [[5.0, 6.0], []], ids=["beyond", "no checkpoints"])
def test_nothing_is_extrapolated(other: list[float]) -> None:
    one = Trajectory(np.array([1.0, 4.0]), np.zeros(2))
    assert len(common_levels([one, Trajectory(np.array(other), np.zeros(len(other)))], 5)) == 0
    assert len(common_levels([], 5)) == 0


def curves(size: Callable[[str, int, int], float], forgotten: Callable[[str, float], float]) -> Tables:
    """A study whose runs have given update sizes, and forget a given function of them."""
    performance, spectra = [], []
    for method, rank, seed in RUNS:
        arm = "full" if method == "full" else f"lora-r{rank}"
        identity = {
            "run": f"{arm}-seed{seed}",
            "method": method,
            "rank": rank,
            "tasks": "topic",
            "seed": seed,
        }
        for step in STEPS:
            x = size(method, seed, step)
            who = identity | {"step": step}
            values = {
                "task": "general_text",
                "metric": "nll",
                "role": "text",
                "value": 3 + forgotten(method, x),
                "stderr": 0.1,
            }
            performance.append(who | values | {"n": 9, "higher_is_better": False})
            matrix = {"layer": 0, "module": "q_proj", "update_norm": 10 * x, "base_norm": 10.0}
            rest = {f"{n}_{s}": 0.0 for n in ("intruders", "intruder_energy") for s in ("left", "right")}
            spectra.append(who | matrix | rest | {"sigma1_ratio": x})
    base = {"run": "base", "method": "base", "rank": 0, "tasks": "", "seed": 0, "step": 0, "value": 3.0}
    performance.append(performance[0] | base)
    return {"performance_metrics": pd.DataFrame(performance), "svd_analysis_results": pd.DataFrame(spectra)}


def test_arms_that_forget_alike_at_equal_size_do_not_differ_there(tmp_path: Path) -> None:
    """The pitfall: LoRA moves, and forgets, twice as much, but both lie on the line 2 x."""
    far = {"full": 0.01, "lora": 0.02}
    tables = curves(lambda m, seed, step: far[m] * step * (1 + seed / 50), lambda m, x: 2 * x)
    found = compute(tables, tmp_path)
    naive = found[PLANE][found[PLANE]["step"] == 18].groupby("method")["nll_increase"].mean()
    assert naive["lora"] > 1.9 * naive["full"]
    means = found[MEANS][found[MEANS]["matched"] == "relative_update_norm"]
    assert len(means) == 5
    assert means["difference"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert means["reason"].str.contains("same value").all()  # what is left is rounding, not a spread


def test_the_difference_at_equal_size_is_found_seed_by_seed(tmp_path: Path) -> None:
    """Full forgets 5 x, LoRA 2 x, whatever the size: at size x the difference is 3 x for every seed."""
    share = {"full": 5, "lora": 2}
    made = curves(lambda m, seed, step: 0.01 * step * (1 + seed / 50), lambda m, x: share[m] * x)
    found = compute(made, tmp_path)
    seeds = found[SEEDS]
    assert sorted(seeds["seed"].unique()) == [1, 2]  # seed 3 has no partner
    assert seeds["difference"].to_numpy() == pytest.approx(3 * seeds["level"].to_numpy())
    means = found[MEANS].set_index("matched").loc["relative_update_norm"]
    assert means["level"].to_numpy() == pytest.approx(0.18 * 1.02 * np.linspace(0.2, 1, 5))
    assert means["forgetting"].to_numpy() == pytest.approx(5 * means["level"].to_numpy())
    assert set(zip(found[MEANS]["arm"], found[MEANS]["other_arm"], strict=True)) == {("full", "lora-r4")}


def test_intervals_are_paired_over_seeds(tmp_path: Path) -> None:
    found = compute(curves(lambda m, seed, step: 0.01 * step, lambda m, x: x), tmp_path)
    assert found[MEANS]["reason"].str.contains("same value").sum() == 5  # seeds agree: no interval
    noisy = curves(lambda m, seed, step: 0.01 * step, lambda m, x: x)
    performance = noisy["performance_metrics"]
    performance.loc[performance["run"] == "full-seed2", "value"] += 0.5
    means = compute(noisy, tmp_path)[MEANS].set_index("matched").loc["relative_update_norm"]
    expected = t_interval([0.0, 0.5])
    means = means[means["level"] > 0.06]  # below, paths run from the base model to the first checkpoint
    assert len(means) == 4
    assert means["difference"].to_numpy() == pytest.approx(0.25)
    assert means["low"].to_numpy() == pytest.approx(expected.low)
    assert means["high"].to_numpy() == pytest.approx(expected.high)
    assert (means["seeds"] == 2).all()


def test_without_a_common_value_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    far = {"full": 0.0, "lora": 0.1}
    found = compute(curves(lambda m, seed, step: far[m] * step, lambda m, x: x), tmp_path)
    assert found[SEEDS].empty
    row = found[MEANS].set_index("matched").loc["relative_update_norm"]
    assert row[["level", "difference", "low", "high"]].isna().all()
    assert "no value of relative_update_norm that all 4 runs reach" in row["reason"]
    assert "no value of task_loss" in found[MEANS].set_index("matched").loc["task_loss", "reason"]


def test_arms_that_share_no_value_are_compared_on_their_way_from_the_base(tmp_path: Path) -> None:
    """LoRA's first checkpoint lies beyond full's last; both start at the base, of loss 2 and no update."""
    far = {"full": 0.01, "lora": 0.1}
    tables = curves(lambda m, seed, step: far[m] * step, lambda m, x: {"full": 3, "lora": 1}[m] * x)
    sizes = tables["svd_analysis_results"]
    logged = sizes.assign(split="validation", loss=2 - sizes["update_norm"] / 10)
    before = logged.drop_duplicates("run").assign(step=0, loss=2.0)
    tables["training_metrics"] = pd.concat([before, logged])[["run", "step", "split", "loss"]]
    means = compute(tables, tmp_path)[MEANS].set_index("matched")
    sizes_of = means.loc["relative_update_norm"]
    assert sizes_of["level"].to_numpy() == pytest.approx(0.18 * np.linspace(0.2, 1, 5))
    assert sizes_of["difference"].to_numpy() == pytest.approx(2 * sizes_of["level"].to_numpy())
    losses = means.loc["task_loss"]
    assert losses["level"].to_numpy() == pytest.approx(2 - 0.18 * np.linspace(0.2, 1, 5))
    assert losses["difference"].to_numpy() == pytest.approx(2 * (2 - losses["level"].to_numpy()))


def test_arms_without_a_seed_in_common_say_so(tmp_path: Path) -> None:
    tables = curves(lambda m, seed, step: 0.01 * step, lambda m, x: x)
    kept = ["full-seed1", "lora-r4-seed3", "base"]
    found = compute({name: table[table["run"].isin(kept)] for name, table in tables.items()}, tmp_path)
    assert (found[MEANS]["reason"] == "the arms share no seed").all()


@pytest.fixture
def tables(make_tables: Callable[..., Tables]) -> Tables:
    return make_tables(RUNS, STEPS, 3)


def test_the_plane_joins_every_table(tables: Tables, tmp_path: Path) -> None:
    plane = compute(tables, tmp_path)[PLANE]
    assert len(plane) == len(RUNS) * len(STEPS)
    assert (plane["reason"] == "not measured: prompt_kl, retention_drop").all()
    row = plane[(plane["run"] == "lora-r4-seed2") & (plane["step"] == 18)].iloc[0]
    assert (row["task"], row["metric"]) == ("topic", "accuracy")
    assert row["score"] == pytest.approx(0.87)
    assert row["score_gain"] == pytest.approx(0.45)  # conftest: .42 + .45 progress
    assert row["nll_increase"] == pytest.approx(0.02)
    training = tables["training_metrics"]
    here = training.eval("run == 'lora-r4-seed2' and step == 18 and split == 'validation'")
    assert row["task_loss"] == training.loc[here, "loss"].item()
    drift = tables["drift_metrics"]
    cka = drift.loc[(drift["run"] == "lora-r4-seed2") & (drift["step"] == 18), "cka"]
    assert row["drift"] == pytest.approx(1 - cka.mean())


def test_the_plane_is_of_trained_tasks_and_has_retention_and_prompts(
    tables: Tables, scored_widely: Callable[[Tables], Tables], tmp_path: Path
) -> None:
    plane = compute(scored_widely(tables), tmp_path)[PLANE]
    assert set(plane["task"]) == {"topic", "summary", "trained_tasks"}
    assert (plane["reason"] == "").all()
    rows = plane[(plane["run"] == "lora-r4-seed2") & (plane["step"] == 18)].set_index("task")
    assert rows["retention_drop"].tolist() == pytest.approx([0.02] * 3)
    assert rows["prompt_kl"].tolist() == pytest.approx([0.03] * 3)  # mean of 2 and 1 times 0.02
    assert rows.loc["trained_tasks", "score"] == pytest.approx((0.87 + 0.5) / 2)


def test_matched_at_equal_loss_of_a_whole_study(tables: Tables, tmp_path: Path) -> None:
    """The losses of all runs are one curve, on which full forgets 2.5 times as much (conftest)."""
    means = compute(tables, tmp_path)[MEANS].set_index("matched").loc["task_loss"]
    assert means["level"].is_monotonic_decreasing
    assert (means["forgetting"] / means["other_forgetting"]).to_numpy() == pytest.approx(2.5)


def test_what_was_not_measured_is_named(tables: Tables, tmp_path: Path) -> None:
    del tables["drift_metrics"], tables["training_metrics"]
    plane = compute(tables, tmp_path)[PLANE]
    assert plane[["drift", "task_loss"]].isna().all(axis=None)
    assert (plane["reason"] == "not measured: task_loss, prompt_kl, retention_drop, drift").all()


def test_only_mean_pooled_states_of_all_features_count_as_drift(tables: Tables) -> None:
    drift = tables["drift_metrics"].assign(representation="mean", features="all")
    others = [drift.assign(cka=0.0, representation="token"), drift.assign(cka=0.0, features="without_top")]
    wanted = checkpoint_summaries(tables)["drift"]
    found = checkpoint_summaries(tables | {"drift_metrics": pd.concat([drift, *others])})["drift"]
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("present", [[], ["training_metrics"]])
def test_a_study_without_checkpoints_has_no_rows(tables: Tables, tmp_path: Path, present: list[str]) -> None:
    assert compute({name: tables[name] for name in present}, tmp_path) == {}


def test_columns_are_those_declared(tables: Tables, tmp_path: Path) -> None:
    for name, table in compute(tables, tmp_path).items():
        assert list(table.columns) == list(ANALYSIS.columns[name])


def test_arms_of_other_tasks_are_no_pair(tables: Tables) -> None:
    table = tables["performance_metrics"].copy()
    assert [arm.name for arm in arms_of(table)] == ["full", "lora-r4"]
    assert len(arm_pairs(arms_of(table))) == 1
    table.loc[table["method"] == "full", "tasks"] = "describe"
    assert arm_pairs(arms_of(table)) == []
