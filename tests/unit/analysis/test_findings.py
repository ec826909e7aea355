"""What the findings say of the tables over items, seeds, directions, representations and edited models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankdrift.analysis.comparisons.seed_contrasts import compute_all
from rankdrift.analysis.contract import Params
from rankdrift.analysis.formats import MISSING, number
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.report.topics import EVIDENCE, ORDER, declared, in_report_order, said
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
Made = Callable[[Any], Tables]
Change = Callable[[pd.DataFrame], pd.DataFrame] | Mapping[str, Any]
ONE_SEED = (("lora", 8, 42), ("full", 0, 42))
THREE_SEEDS = tuple((method, rank, seed) for seed in (1, 2, 3) for method, rank in (("full", 0), ("lora", 8)))
SEEDS, MATCHED = "Means and differences over seeds", "Equal learning, equal update"
PREDICTORS, DRIFT = "What goes with forgetting", "Drift of the representations"
TASKS, EDITS = "Gradients of the tasks", "Interventions on intruders"
PAIR = "full minus lora-r8"
NO_INTERVAL = {"low": np.nan, "high": np.nan}


@dataclass(frozen=True)
class Said:
    """What is said of one topic."""

    grids: list[Grid]
    sentences: list[str]

    @property
    def lines(self) -> list[dict[str, dict[str, str]]]:
        """Of each table: the name of a line -> heading -> text."""
        return [
            {row[0]: dict(zip(grid.headers[1:], row[1:], strict=True)) for row in grid.rows}
            for grid in self.grids
        ]


Say = Callable[..., Said]


@pytest.fixture(scope="module")
def made(make_tables: Callable[..., Tables]) -> Made:
    """Return made(runs) -> the tables of these runs, made once."""
    return cache(lambda runs: make_tables(runs, [4, 8], 3, ["mean", "last_token", "token"]))


@pytest.fixture
def say(tmp_path: Path, made: Made) -> Say:
    """Return say(topic, runs, table=change, ...) -> what is said where some of all tables are changed.

    A change is a function of the table, or columns with their new values.
    """

    def of_topic(topic: str, runs: Any = ONE_SEED, **changed: Change) -> Said:
        tables = dict(made(runs))
        for name, change in changed.items():
            table = tables[name].copy()
            tables[name] = change(table) if callable(change) else table.assign(**change)
        study = Study(StudyLayout(tmp_path), recipe={}, tables=tables, metas={}, runs=())
        parts = [part for finding in declared() if finding.topic == topic for part in said(finding, study)]
        grids = [part for part in parts if isinstance(part, Grid)]
        return Said(grids, [part for part in parts if isinstance(part, str)])

    return of_topic


def test_changes_from_the_base_are_stated_with_their_interval_over_items(say: Say) -> None:
    learnt = say("Learning")
    assert learnt.grids[0].caption == (
        "accuracy on topic at the last checkpoint; the base model has 0.420 ± 0.025"
    )
    assert learnt.lines[0]["full-seed42"] == {
        "step": "8",
        "accuracy on topic": "0.8700",
        "change from the base": "+0.450",
        "95 % BCa interval over items": "[0.400, 0.500]",
        "McNemar's p": "1.0e-09",
        "items gained / lost": "200 / 20",
        "shown": "yes",
        "items": "400",
    }
    assert say("Forgetting").lines[0]["full-seed42"] == {
        "step": "8",
        "NLL of general text (nats a token)": "3.150",
        "change from the base": "+0.0500",
        "95 % BCa interval over items": "[0.0400, 0.0600]",
        "shown": "yes",
        "windows": "48",
        "of documents": "12",
        "KL from the base (nats a token) ± standard error": "0.0700 ± 0.0050",
    }


def test_full_fine_tuning_is_compared_with_other_runs_of_its_seed(say: Say) -> None:
    runs = (*THREE_SEEDS, ("lora", 4, 1))
    assert say("Learning", runs).lines[1] == {  # and LoRA's ranks not with each other
        name: {"full minus this run": "0 [-0.0200, 0.0200]"}
        for name in ("lora-r4-seed1", "lora-r8-seed1", "lora-r8-seed2", "lora-r8-seed3")
    }
    between = say("Forgetting", runs).lines[1]
    assert between["lora-r4-seed1"] == {"full minus this run": "+0.0300 [0.0200, 0.0400] *"}


def test_a_contrast_that_names_full_second_is_turned(say: Say) -> None:
    def turned(table: pd.DataFrame) -> pd.DataFrame:
        names = {"run": "other_run", "other_run": "run", "step": "other_step", "other_step": "step"}
        arms = table["contrast"] == "arms"
        table.loc[arms, list(names)] = table.loc[arms, list(names.values())].to_numpy()
        table.loc[arms, "difference"] *= -1
        table.loc[arms, ["low", "high"]] = -table.loc[arms, ["high", "low"]].to_numpy()
        return table

    assert say("Forgetting", item_contrasts=turned) == say("Forgetting")


@pytest.mark.parametrize("topic", ["Learning", "Forgetting"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_runs_of_one_method_are_not_compared(say: Say, method: str, topic: str) -> None:
    found = say(topic, performance_metrics=lambda table: table.replace({"full": method, "lora": method}))
    assert [list(lines) for lines in found.lines] == [["full-seed42", "lora-r8-seed42"]]


@pytest.mark.parametrize(
    ("topics", "evidence", "verdict", "rule"),
    [
        # scores that are not right or wrong have no exact test
        (("Learning", "Forgetting"), (0.01, 0.02, np.nan), "yes", "the interval excludes 0"),
        (("Learning", "Forgetting"), (-0.02, -0.01, np.nan), "yes", "the interval excludes 0"),
        (("Learning", "Forgetting"), (-0.01, 0.02, np.nan), "no", "the interval excludes 0"),
        (("Learning", "Forgetting"), (0.0, 0.02, np.nan), "no", "the interval excludes 0"),
        # the ends of others' intervals lie on few values, and the order of the items may decide on which
        (("Learning",), (0.01, 0.02, 0.04), "yes", "McNemar's exact p below 0.05"),
        (("Learning",), (0.01, 0.02, 0.06), "no", "McNemar's exact p below 0.05"),
    ],
)
def test_what_is_more_than_chance(say: Say, topics: Any, evidence: Any, verdict: str, rule: str) -> None:
    for topic in topics:
        found = say(topic, item_contrasts=dict(zip(("low", "high", "mcnemar_p"), evidence, strict=True)))
        changes, between = found.lines
        assert [row["shown"] for row in changes.values()] == [verdict] * 2
        marked = [row["full minus this run"].endswith(" *") for row in between.values()]
        assert marked == [verdict == "yes"]
        (count,) = found.sentences
        assert count.startswith(f"{2 if verdict == 'yes' else 0} of 2 runs are shown to differ from the base")
        assert rule in count


def test_without_an_interval_there_is_no_verdict(say: Say) -> None:
    few = NO_INTERVAL | {"mcnemar_p": np.nan, "reason": "6 to resample, fewer than 10"}
    found = say("Learning", item_contrasts=few)
    changes, between = found.lines
    assert "shown" not in changes["full-seed42"]
    assert changes["full-seed42"]["no interval"] == "6 to resample, fewer than 10"
    assert between["lora-r8-seed42"]["full minus this run"] == "0 (6 to resample, fewer than 10)"
    assert found.sentences == []


def test_scores_of_which_less_is_better_say_so(say: Say) -> None:
    found = say("Learning", performance_metrics={"higher_is_better": False})
    assert found.grids[0].caption.startswith("accuracy on topic (lower is better) at the last")


def test_other_items_leave_the_change_of_the_scores_alone(say: Say) -> None:
    unknown = dict.fromkeys(("difference", "low", "high", "gained", "lost", "mcnemar_p"), np.nan)
    found = say("Learning", item_contrasts=unknown | {"reason": "scored on different items"})
    changes, between = found.lines
    assert changes["full-seed42"] == {
        "step": "8",
        "accuracy on topic": "0.8700",
        "change from the base": "+0.450",
        "no interval": "scored on different items",
    }
    assert between["lora-r8-seed42"]["full minus this run"] == f"{MISSING} (scored on different items)"


@pytest.mark.parametrize("change", [{"step": 4}, {"metric": "f1"}], ids=["another step", "another metric"])
def test_contrasts_of_something_else_are_not_taken(say: Say, change: dict[str, object]) -> None:
    (changes,) = say("Learning", item_contrasts=change).lines
    assert [row["no interval"] for row in changes.values()] == ["not in the table item_contrasts"] * 2


@pytest.mark.parametrize(
    ("change", "accuracy"),
    [
        ({}, {"accuracy on topic, change": "+0.450 [0.420, 0.480] (n = 3)"}),
        (
            {"performance_metrics": lambda table: table[table["run"] != "base"]},
            {"accuracy on topic, value": "0.870 [0.840, 0.900] (n = 3)"},
        ),
        (
            {"seed_means": NO_INTERVAL | {"reason": "all 3 seeds give the same value"}},
            {"accuracy on topic, change": "+0.450 (all 3 seeds give the same value) (n = 3)"},
        ),
    ],
    ids=["as they are", "base not scored", "seeds that agree"],
)
def test_means_over_seeds_are_of_changes(say: Say, change: Any, accuracy: Any) -> None:
    means = say(SEEDS, THREE_SEEDS, **change).lines[0]
    assert list(means) == ["full", "lora-r8"]
    assert accuracy.items() <= means["full"].items()
    assert len(means["full"]) == 2  # of general text the NLL alone: perplexity is the NLL again


def test_means_and_differences_are_those_of_t_tests(say: Say, made: Made, tmp_path: Path) -> None:
    """From scores to sentences: what `seed_contrasts` makes of planted scores, against SciPy's t tests."""
    scores = {"full": np.array([0.80, 0.82, 0.87]), "lora": np.array([0.78, 0.81, 0.83])}
    performance = made(THREE_SEEDS)["performance_metrics"].copy()
    for method, values in scores.items():
        rows = (performance["method"] == method) & (performance["task"] == "topic")
        performance.loc[rows, "value"] = values[performance.loc[rows, "seed"].to_numpy() - 1]
    performance.to_parquet(tmp_path / "performance_metrics.parquet")
    tables = compute_all([], Params(cache=tmp_path), tmp_path) | {"performance_metrics": performance}
    changed = {name: (lambda _, table=table: table) for name, table in tables.items()}
    means, accuracy, _ = say(SEEDS, THREE_SEEDS, **changed).lines
    mean = stats.ttest_1samp(scores["full"] - 0.42, 0).confidence_interval()
    ends = f"[{number(mean.low)}, {number(mean.high)}]"
    assert means["full"]["accuracy on topic, change"] == f"+0.410 {ends} (n = 3)"
    paired = stats.ttest_rel(scores["full"], scores["lora"])
    ends = "[{}, {}]".format(*map(number, paired.confidence_interval()))
    assert accuracy[PAIR]["mean difference"] == f"+0.0233 {ends}"
    assert accuracy[PAIR]["p"] == number(paired.pvalue, 2)


def test_contrasts_over_seeds_say_what_was_shown_and_what_could_be(say: Say) -> None:
    found = say(SEEDS, THREE_SEEDS)
    _, accuracy, nll = found.lines
    assert accuracy[PAIR] == {
        "seeds": "3",
        "mean difference": "+0.0200 [0.0133, 0.0267]",
        "p": "0.010",
        "p after Holm": "0.020",
        "shown": "yes",
        "detectable with 80 % power": "0.010 [0.0050, 0.060]",
        "two seeds of one arm: median, largest": "0.0050, 0.010 (3 pairs)",
    }
    assert nll[PAIR]["mean difference"].startswith("+0.0300")
    assert found.sentences[0] == (
        "1 of 1 pairs of arms are shown to differ in accuracy on topic: an interval without 0, and p at most "
        "0.05 after Holm's correction over tasks."
    )


def test_two_seeds_are_no_ground_for_what_could_be_detected(say: Say) -> None:
    found = say(SEEDS, THREE_SEEDS, seed_contrasts={"seeds": 2})
    assert "detectable with 80 % power" not in found.grids[1].headers


@pytest.mark.parametrize("change", [{"low": -0.01}, {"p_holm": 0.08}], ids=["interval", "Holm"])
def test_no_contrast_is_shown_that_chance_or_many_tasks_explain(say: Say, change: dict[str, float]) -> None:
    found = say(SEEDS, THREE_SEEDS, seed_contrasts=change)
    assert [lines[PAIR]["shown"] for lines in found.lines[1:]] == ["no", "no"]
    assert [text.startswith("None of 1 pairs") for text in found.sentences] == [True, True]


@pytest.mark.parametrize(("after_holm", "shown"), [(0.02, "none"), (0.002, "1")])  # times 21 pairs
def test_of_many_pairs_the_surest_are_listed_and_all_counted(say: Say, after_holm: float, shown: str) -> None:
    def many(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[table["seeds"] > 1]
        unsure = {"p_holm": 0.9, "low": -1.0, "high": 1.0}
        copies = [rows.assign(arm=f"arm{i}", p_value=0.9 - i / 100, **unsure) for i in range(20)]
        # of the surest the interval excludes 0
        return pd.concat([*copies, rows.assign(arm="surest", p_value=0.95, p_holm=after_holm)])

    found = say(SEEDS, THREE_SEEDS, seed_contrasts=many)
    listed = [row[0] for row in found.grids[1].rows]
    assert listed == ["surest minus lora-r8", *(f"arm{i} minus lora-r8" for i in range(19, 8, -1))]
    assert "the 12 surest of 21 pairs" in found.grids[1].caption
    first, _ = found.sentences
    assert first.startswith("1 of 21 pairs of arms are shown to differ in accuracy on topic: an interval")
    assert first.endswith(
        "Of 21 pairs that do not differ about 1 would seem to; corrected for the number of pairs as well, "
        f"{shown} are shown."
    )


def test_pairs_that_cannot_be_compared_are_counted(say: Say) -> None:
    arms = (*THREE_SEEDS, ("lora", 4, 7))  # a seed that no other arm has
    found = say(
        SEEDS, arms, seed_contrasts=lambda table: table.query("arm != 'lora-r4' and other_arm != 'lora-r4'")
    )
    assert found.sentences[-1] == (
        "Of 3 pairs of arms 2 are not compared: they have no seed in common, or were trained on different "
        "tasks."
    )


def test_one_shared_seed_shows_nothing(say: Say) -> None:
    assert say(SEEDS).sentences == ["Pairs of arms with one seed in common: 1; no interval, nothing shown."]
    row = say(MATCHED).lines[0][PAIR]
    assert row["difference, 95 % paired t interval"] == "+0.0300 (one seed: no interval)"
    assert row["shown"] == "nothing"


def test_matched_arms_are_compared_at_the_furthest_level(say: Say) -> None:
    found = say(MATCHED, THREE_SEEDS)
    at_loss, at_size = found.lines
    assert at_loss[PAIR] == {
        "seeds": "3",
        "at": "0.500 nats a target token",
        "first": "0.0500",
        "second": "0.0200",
        "difference, 95 % paired t interval": "+0.0300 [0.0200, 0.0400]",
        "shown": "lora-r8 forgets less",
        "difference over all levels": "+0.0300 to +0.0300",
    }
    assert at_size[PAIR]["at"] == "0.00400"
    for grid, name in zip(found.grids, ("validation loss", "relative size of the update"), strict=True):
        assert f"at equal {name}" in grid.caption


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"low": -0.01}, "nothing"),
        ({"difference": -0.03, "low": -0.04, "high": -0.02}, "full forgets less"),
    ],
    ids=["within the interval", "the other way"],
)
def test_matched_verdicts(say: Say, change: Any, verdict: str) -> None:
    found = say(MATCHED, THREE_SEEDS, matched_comparison=change)
    assert [lines[PAIR]["shown"] for lines in found.lines] == [verdict] * 2


def test_unmatched_arms_are_counted_with_the_reason(say: Say) -> None:
    unmatched = {"difference": np.nan, "reason": "no value that all reach"}
    assert say(MATCHED, THREE_SEEDS, matched_comparison=unmatched) == Said(
        grids=[],
        sentences=[
            f"At equal {what} 1 of 1 pairs of arms have no comparison: no value that all reach."
            for what in ("validation loss", "relative size of the update")
        ],
    )


def test_predictors_are_stated_with_their_intervals(say: Say) -> None:
    row = say(PREDICTORS).lines[0]["all 24 checkpoints: 12 runs of 6 arms"]
    assert row["KL from the base, same text"] == "0.90 [0.700, 0.950]"
    assert list(row)[1] == "relative size of the update"
    found = say(PREDICTORS, forgetting_predictors={"spearman_low": np.nan, "runs": 3, "scope": "lora"})
    row = found.lines[0]["all 24 checkpoints: 3 lora runs of 6 arms"]
    assert row["KL from the base, same text"] == "0.90 (no interval)"
    assert "nothing is shown" in found.sentences[0]


def test_predictors_that_do_not_vary_are_named(say: Say) -> None:
    def constant(table: pd.DataFrame) -> pd.DataFrame:
        here = table["predictor"] == "intruders_left"
        unknown = {"spearman": np.nan, "reason": "undefined: a constant; other"}
        return table.assign(**{name: table[name].mask(here, value) for name, value in unknown.items()})

    found = say(PREDICTORS, forgetting_predictors=constant)
    assert not any("intruders, left" in header for header in found.grids[0].headers)
    assert found.sentences[0] == (
        "No correlation with intruders, left (the published count): undefined: a constant."
    )


def test_task_vectors_tell_runs_of_one_seed_from_others(say: Say) -> None:
    def alike_with_one_seed(table: pd.DataFrame) -> pd.DataFrame:
        one_seed = (table["seed"] == table["other_seed"]) & (table["run"] != table["other_run"])
        return table.assign(cosine=table["cosine"].mask(one_seed, 0.7))

    def named_the_other_way(table: pd.DataFrame) -> pd.DataFrame:
        columns = ["run", "method", "rank", "tasks", "seed", "step"]
        others = [f"other_{column}" for column in columns]
        names = dict(zip([*columns, *others], [*others, *columns], strict=True))
        return alike_with_one_seed(table).rename(columns=names)

    found = say("Task vectors", THREE_SEEDS, task_vectors=alike_with_one_seed)
    assert say("Task vectors", THREE_SEEDS, task_vectors=named_the_other_way) == found
    cosines, conflicts = found.grids
    assert cosines.headers == ("", "full", "lora-r8")
    assert cosines.rows == (("full", "0.500", "0.700"), ("lora-r8", "0.0500", "0.500"))
    assert [row[0] for row in conflicts.rows] == ["full", "lora-r8"]
    assert "within ±0.0020" in found.sentences[0]


def test_intruders_are_stated_beside_random_directions(say: Say) -> None:
    # made up: from threshold 0.5 on one of k = 10 vectors in one of 3 layers
    found = say("Intruder dimensions")
    assert "10 leading vectors" in found.grids[1].caption
    over = found.lines[1]
    lora, random = over["lora-r8"], over["random directions, the most of any arm"]
    assert (lora["0.3"], lora["0.9"]) == ("0 %", "3.33 %")
    assert (random["0.3"], random["0.9"]) == ("100 %", "100 %")


def test_subspaces_and_what_the_naive_distance_would_say(say: Say, made: Made) -> None:
    found = say("Leading subspaces")
    drift = number(0.05 * (1 + 1 / 3) * (10 / 32) ** 0.2)  # mean over layers 0, 1, 2 of 3
    full = found.lines[0]["full-seed42"]
    assert (full["left"], full["right"]) == (drift, drift)
    assert full["matrices with a gap above twice the update"] == "0 %"
    overlap = made(ONE_SEED)["subspace_drift"].query("k == 10 and layer >= 0")["overlap_random"]
    assert float(full["unrelated spans"]) == pytest.approx(np.sqrt(1 - overlap).mean(), rel=2e-3)
    assert found.sentences[0].startswith("The naive distance of the same vectors would say 0.680 to 0.680")


def test_what_did_not_change_is_no_drift_of_subspaces(say: Say) -> None:
    """Matrices that an adapter leaves alone stay where they are, and are no measure of those it changes."""

    def attention_alone(column: str) -> Change:
        return lambda table: table.assign(**{column: table[column].where(table["module"] == "q_proj", 0.0)})

    changed = {"svd_analysis_results": "update_norm", "subspace_drift": "vector_drift"}
    found = say("Leading subspaces", **{name: attention_alone(column) for name, column in changed.items()})
    assert found.grids[0].rows == say("Leading subspaces").grids[0].rows  # made up: modules drift alike


def test_drift_is_stated_by_representation(say: Say) -> None:
    found = say(DRIFT)
    assert found.lines[1]["full-seed42"] == {
        f"{pooled}, {features}": text
        for features in ("all dimensions", "without those of largest variance")
        for pooled, text in {
            "means of the tokens": "0.9400 ± 0.0075",
            "last tokens": "0.8800 ± 0.015",
            "single tokens": "0.8200 ± 0.022",
        }.items()
    }
    assert found.sentences == [
        "In 2 of 2 runs every state is, by CKA, most like the same state of the base. Of 0 that are more "
        "like another one, 0 are so by more than 1.96 standard errors of their CKA with their own."
    ]


@pytest.mark.parametrize(("errors", "clear"), [(2.0, 1), (1.9, 0)])  # gap in standard errors: 1.96
def test_layers_that_changed_places_are_named(say: Say, made: Made, errors: float, clear: int) -> None:
    def swapped(table: pd.DataFrame) -> pd.DataFrame:
        here = (table["run"] == "full-seed42") & (table["tuned_layer"] == 2) & (table["base_layer"] == 1)
        return table.assign(cka=table["cka"].mask(here, 0.96))

    similarity = made(ONE_SEED)["layer_similarity"]
    own = similarity.query("run == 'full-seed42' and tuned_layer == base_layer == 2")["cka"].iloc[-1]
    stderr = (0.96 - own) / errors
    found = say(DRIFT, layer_similarity=swapped, drift_metrics={"cka_stderr": stderr})
    places = [{"full-seed42": {"tuned state (base state)": "2 (1)"}}]
    assert found.lines[2:] == places * clear
    assert "In 1 of 2 runs" in found.sentences[0]
    assert f"Of 1 that are more like another one, {clear} are" in found.sentences[0]


def test_gradients_are_stated_at_first_and_at_last(say: Say) -> None:
    def growing(table: pd.DataFrame) -> pd.DataFrame:
        deep = np.where(table["level"] == "layer", table["layer"], 0)
        return table.assign(l2_norm=table["step"] + deep)

    found = say("Gradients", (("full", 0, 42),), gradient_analysis_results=growing)
    assert found.lines[0]["full-seed42"] == {  # eight steps: a third is two
        "probed steps": "8 (1 to 8)",
        "at first": "1.50",
        "at last": "7.50",
        "largest layer": "2",
        "smallest layer": "0",
    }


def test_a_table_without_rows_is_not_printed(say: Say) -> None:
    found = say("Gradients", gradient_analysis_results=lambda table: table[table["level"] == "layer"])
    assert found == Said([], [])


def test_gradients_of_tasks_are_a_conflict_only_beyond_their_error(say: Say) -> None:
    told = say(TASKS)
    rows = {(row[0], row[1]): row[2:] for row in told.grids[0].rows}
    assert len(told.grids[0].rows) == len(rows) == 2 * 3  # two runs, pairs of three tasks
    assert rows["full-seed42", "entailment with topic"] == ("0 ± 0.050", "0", "no direction shown")
    assert rows["full-seed42", "general_text with topic"] == ("-1.00 ± 0.050", "-0.600", "a conflict")
    assert told.lines[1]["full-seed42"]["topic"] == "80.0 ± 16"
    assert told.lines[1]["full-seed42"].get("general_text", MISSING) == MISSING
    (unknown_scales,) = told.sentences
    assert unknown_scales.startswith("Of 6 gradients (a run and task each, 32 rows), 2 are not told from 0")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"cosine_corrected": 0.09, "cosine_corrected_stderr": 0.05}, "no direction shown"),
        (
            {"cosine_corrected": np.nan, "reason": "|G|² of topic is not above 0"},
            "|G|² of topic is not above 0",
        ),
    ],
    ids=["small", "unknown"],
)
def test_of_a_cosine_within_its_error_no_direction_is_shown(say: Say, change: Any, verdict: str) -> None:
    assert {row[-1] for row in say(TASKS, task_gradients=change).grids[0].rows} == {verdict}


@pytest.mark.parametrize(("errors", "given"), [(2.3, 0), (2.4, 2)])  # t of 8 shards: 2.365
def test_noise_scales_are_of_gradients_told_from_0(say: Say, errors: float, given: int) -> None:
    square = {"gradient_square": errors, "gradient_square_stderr": 1.0}
    found = say(TASKS, gradient_noise=lambda table: table[table["task"] == "topic"].assign(**square))
    assert sum(len(grid.rows) for grid in found.grids if "Noise scale" in grid.caption) == given
    assert any("2 are not told from 0" in text for text in found.sentences) != bool(given)


LOWERS = "lowers this model's NLL more than every control does, beyond both intervals."
NOT_MORE = "Editing intruders does not lower the NLL more than {} beyond both"


@pytest.mark.parametrize(
    ("arm", "ends", "verdict"),
    [
        ("intruders", (-0.023, -0.017), LOWERS),
        ("intruders", (-0.03, -0.01), NOT_MORE.format("neighbours, random, shrunk, rescaled")),
        ("random", (-0.025, -0.005), NOT_MORE.format("random")),
        ("random", (np.nan, np.nan), NOT_MORE.format("random")),
        ("intruders", (-0.05, 0.01), "That editing intruders lowers the NLL is not shown"),
        ("intruders", (np.nan, np.nan), "Whether editing intruders lowers the NLL is not known"),
    ],
)
def test_intruders_are_blamed_only_beyond_every_control(say: Say, arm: str, ends: Any, verdict: str) -> None:
    def changed(table: pd.DataFrame) -> pd.DataFrame:
        rows = (table["arm"] == arm) & (table["metric"] == "nll")
        table.loc[rows, ["difference_low", "difference_high"]] = ends
        return table

    found = say(EDITS, variant_scores=changed)
    assert verdict in found.sentences[0]
    rescaled = found.lines[0]["rescaled"]
    assert (rescaled["size of the edit"], rescaled["size of the update left"]) == ("1.00 %", "2.00 %")
    assert rescaled["change of the NLL (nats a token)"] == "-0.0100 [-0.0130, -0.00700]"


def test_edits_of_other_settings_are_no_controls(say: Say) -> None:
    def looser(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[(table["kind"] == "intervention") & (table["run"] == "full-seed42")]
        return rows.assign(threshold=rows["threshold"].where(rows["arm"] == "intruders", 0.9))

    found = say(EDITS, variant_scores=looser)
    assert found.grids[0].caption.startswith(
        "full-seed42, singular values times 0 (all of the intruders among 10 leading vectors at the "
        "threshold 0.5). Sizes are shares of the base's norm, the update's 0.473 % before;"
    )
    intruders, controls = found.lines
    assert list(intruders) == ["intruders"]
    assert "intruders" not in controls
    assert found.sentences == []


def test_edits_scored_on_several_tasks_are_told_once(say: Say) -> None:
    def two_tasks(table: pd.DataFrame) -> pd.DataFrame:
        other = table[table["task"] == "topic"].assign(task="describe", metric="ter", higher_is_better=False)
        return pd.concat([table, other])

    found = say(EDITS, variant_scores=two_tasks)
    assert len(found.sentences) == 2  # runs
    assert "change of ter on describe (lower is better)" in found.grids[0].headers
    alone = say(EDITS, variant_scores=lambda table: table[table["task"] == "general_text"])
    assert alone.grids[0].headers[-1] == "change of the NLL (nats a token)"


def test_the_best_points_of_a_line_are_said_to_be_chosen(say: Say) -> None:
    found = say("Between base and tuned weights")
    full = found.lines[0]["full-seed42"]
    assert full["best accuracy on topic"] == "0.870 at t = 1, the tuned model's own"
    assert full["lowest NLL of general text"].startswith("3.10 at t = 0: -0.0400 [-0.0430")
    assert "do not allow for the choice" in found.sentences[0]


def test_an_embedding_is_named_without_a_layer(say: Say) -> None:
    def with_embedding(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[(table["layer"] == 0) & (table["module"] == "q_proj")]
        outside = rows.assign(layer=-1, module="embed_tokens", relative_update_norm=0.5)
        untouched = rows.assign(layer=-1, module="lm_head", update_norm=0.0, bf16_floor_ratio=0.0)
        return pd.concat([table, outside, untouched])

    full = say("Size of the update", svd_analysis_results=with_embedding).lines[0]["full-seed42"]
    assert (full["which"], full["largest of a matrix"]) == ("embed_tokens", "50.0 %")
    assert (full["matrices"], full["changed"], full["below bf16's rounding"]) == ("23", "22", "0")


@pytest.fixture
def say_widely(tmp_path: Path, made: Made, scored_widely: Callable[[Tables], Tables]) -> Say:
    """Return say(topic, table=change, ...) of a study scored on two tasks, retention tasks and prompts."""

    def of_topic(topic: str, **changed: Change) -> Said:
        tables = scored_widely(made(ONE_SEED))
        for name, change in changed.items():
            tables[name] = change(tables[name]) if callable(change) else tables[name].assign(**change)
        study = Study(StudyLayout(tmp_path), recipe={}, tables=tables, metas={}, runs=())
        parts = [part for finding in declared() if finding.topic == topic for part in said(finding, study)]
        grids = [part for part in parts if isinstance(part, Grid)]
        return Said(grids, [part for part in parts if isinstance(part, str)])

    return of_topic


def test_what_is_had_without_a_model_stands_beside_the_scores(say_widely: Say) -> None:
    found = say_widely("Learning")
    assert [
        grid.caption.split(" at the last")[0] for grid in found.grids if "minus this" not in grid.headers[1]
    ] == [
        "accuracy on topic",
        "rouge_l on summary",
        "macro average over the trained tasks",
    ]
    assert found.grids[0].caption.endswith(
        "the base model has 0.420 ± 0.025. Without a model: the most frequent answer gives 0.250"
    )
    assert found.lines[0]["full-seed42"]["over the most frequent answer"] == "+0.620"
    assert not any(text.startswith("Not above") for text in found.sentences)


def test_a_score_that_is_not_above_the_majority_class_is_said_to_be_none(say_widely: Say) -> None:
    """Accuracy 0.87 ± 0.017 of the runs and 0.42 of the base, against 0.85: 0.884 would be shown."""
    found = say_widely("Learning", baselines=lambda table: table.replace({0.25: 0.85}))
    assert found.sentences[0] == (
        "Not above what the most frequent answer gives, 0.850, by two standard errors: "
        "base, full-seed42, lora-r8-seed42."
    )


def test_retention_tasks_are_listed_with_their_mean_and_changes(say_widely: Say) -> None:
    found = say_widely("Retention tasks")
    scores, changes = found.lines
    assert list(scores) == ["full-seed42", "lora-r8-seed42", "base"]
    assert scores["full-seed42"] == {  # 0.4, 0.3 and 0.5 less 0.05
        "hellaswag: accuracy": "0.350 ± 0.020",
        "arc_challenge: accuracy": "0.250 ± 0.020",
        "winogrande: accuracy": "0.450 ± 0.020",
        "retention: mean_accuracy": "0.350 ± 0.012",  # 0.02 / sqrt(3)
    }
    assert changes["full-seed42"]["hellaswag: accuracy"] == "-0.0500 [-0.0800, -0.0200] *"
    assert changes["full-seed42"]["retention: mean_accuracy"] == "-0.0500 [-0.0800, 0.0100]"
    assert found.sentences == [
        "6 of 8 changes with an interval are marked; of changes that are none about one in twenty would be."
    ]


def test_changes_of_retention_without_items_are_those_of_the_scores(say_widely: Say) -> None:
    found = say_widely("Retention tasks", item_contrasts=lambda table: table.head(0))
    assert found.lines[1]["full-seed42"]["hellaswag: accuracy"] == (
        "-0.0500 (the study has no table item_contrasts)"
    )
    assert found.sentences == []


def test_kl_on_prompts_has_a_column_a_task_and_their_mean(say_widely: Say) -> None:
    (lines,) = say_widely("Predictions on the tasks' prompts").lines
    assert lines["full-seed42"] == {  # 2 and 1 times 0.05; sqrt(0.04² + 0.03²) / 2
        "topic_prompts": "0.100 ± 0.040",
        "summary_prompts": "0.0500 ± 0.030",
        "mean over tasks": "0.0750 ± 0.025",
    }


def test_every_finding_is_of_its_own_analysis_and_is_said(
    made: Made, scored_widely: Callable[[Tables], Tables], tmp_path: Path
) -> None:
    tables = (scored_widely(made(ONE_SEED)), made(THREE_SEEDS))
    studies = [Study(StudyLayout(tmp_path), {}, of_study, {}, ()) for of_study in tables]
    assert set(ORDER) - {EVIDENCE} <= {finding.topic for finding in declared()}
    for analysis in in_report_order():
        assert {headline.table for headline in analysis.headline} <= set(analysis.tables)
        for finding in analysis.findings:
            assert finding.reads[0] in analysis.tables
            made_up = finding.reads[0] in studies[0].tables
            assert not made_up or any(list(said(finding, study)) for study in studies)


def test_states_whose_likeness_is_undefined_are_left_out(say: Say) -> None:
    """Of a drift that has no CKA nothing is said, and a state without its own has no better match."""
    unknown = say(DRIFT, drift_metrics={"cka": np.nan}, layer_similarity={"cka": np.nan})
    assert unknown == Said([], [])

    def without_own(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(cka=table["cka"].mask(table["tuned_layer"] == table["base_layer"]))

    assert say(DRIFT, layer_similarity=without_own).sentences == []
