"""What the findings say of the tables over items, seeds, directions, representations and edited models."""

from __future__ import annotations

from collections.abc import Callable
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
from rankdrift.analysis.report.topics import topics
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
Write = Callable[..., Study]
ONE_SEED = (("lora", 8, 42), ("full", 0, 42))
THREE_SEEDS = tuple((method, rank, seed) for seed in (1, 2, 3) for method, rank in (("full", 0), ("lora", 8)))


@pytest.fixture(scope="module")
def made(make_tables: Callable[..., Tables]) -> Callable[[Any], Tables]:
    """Return made(runs) -> the tables of these runs, made once."""
    return cache(lambda runs: make_tables(runs, [4, 8], 3, ["mean", "last_token", "token"]))


@pytest.fixture
def whole(tmp_path: Path, made: Callable[[Any], Tables]) -> Write:
    """Return write(runs, table=change, ...) -> a study with all tables, some of them changed."""

    def write(runs: Any = ONE_SEED, **changed: Callable[[pd.DataFrame], pd.DataFrame]) -> Study:
        tables = made(runs) | {name: change(made(runs)[name].copy()) for name, change in changed.items()}
        return Study(StudyLayout(tmp_path), recipe={}, tables=tables, metas={}, runs=())

    return write


def sentences(study: Study, topic: str) -> list[str]:
    return [part for part in parts(study, topic) if isinstance(part, str)]


def grids(study: Study, topic: str) -> list[Grid]:
    return [part for part in parts(study, topic) if isinstance(part, Grid)]


def parts(study: Study, topic: str) -> list[str | Grid]:
    return list({found.title: found.parts for found in topics(study)}.get(topic, ()))


def cells(grid: Grid) -> dict[str, dict[str, str]]:
    """Return the name of a row -> heading -> text."""
    return {row[0]: dict(zip(grid.headers[1:], row[1:], strict=True)) for row in grid.rows}


def test_changes_from_the_base_are_stated_with_their_interval_over_items(whole: Write) -> None:
    study = whole()
    learnt, _ = grids(study, "Learning")
    assert learnt.caption == "accuracy on topic at the last checkpoint; the base model has 0.420 ± 0.025"
    assert cells(learnt)["full-seed42"] == {
        "step": "8",
        "accuracy on topic": "0.8700",
        "change from the base": "+0.450",
        "95 % BCa interval over items": "[0.400, 0.500]",
        "McNemar's p": "1.0e-09",
        "items gained / lost": "200 / 20",
        "shown": "yes",
        "items": "400",
    }
    forgotten, _ = grids(study, "Forgetting")
    assert cells(forgotten)["full-seed42"] == {
        "step": "8",
        "NLL of general text (nats a token)": "3.150",
        "change from the base": "+0.0500",
        "95 % BCa interval over items": "[0.0400, 0.0600]",
        "shown": "yes",
        "windows": "48",
        "of documents": "12",
        "KL from the base (nats a token) ± standard error": "0.0700 ± 0.0050",
    }


def test_full_fine_tuning_is_compared_with_other_runs_of_its_seed(whole: Write) -> None:
    study = whole((*THREE_SEEDS, ("lora", 4, 1)))
    _, between = grids(study, "Learning")
    assert cells(between) == {  # and LoRA's ranks not with each other
        name: {"full minus this run": "0 [-0.0200, 0.0200]"}
        for name in ("lora-r4-seed1", "lora-r8-seed1", "lora-r8-seed2", "lora-r8-seed3")
    }
    _, between = grids(study, "Forgetting")
    assert cells(between)["lora-r4-seed1"] == {"full minus this run": "+0.0300 [0.0200, 0.0400] *"}


def test_a_contrast_that_names_full_second_is_turned(whole: Write) -> None:
    def turned(table: pd.DataFrame) -> pd.DataFrame:
        names = {"run": "other_run", "other_run": "run", "step": "other_step", "other_step": "step"}
        arms = table["contrast"] == "arms"
        table.loc[arms, list(names)] = table.loc[arms, list(names.values())].to_numpy()
        table.loc[arms, "difference"] *= -1
        table.loc[arms, ["low", "high"]] = -table.loc[arms, ["high", "low"]].to_numpy()
        return table

    assert grids(whole(item_contrasts=turned), "Forgetting") == grids(whole(), "Forgetting")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_runs_of_one_method_are_not_compared(whole: Write, method: str) -> None:
    study = whole(performance_metrics=lambda table: table.replace({"full": method, "lora": method}))
    for topic in ("Learning", "Forgetting"):
        (only,) = grids(study, topic)
        assert list(cells(only)) == ["full-seed42", "lora-r8-seed42"]


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [((0.01, 0.02), "yes"), ((-0.02, -0.01), "yes"), ((-0.01, 0.02), "no"), ((0.0, 0.02), "no")],
)
def test_only_an_interval_without_0_is_more_than_chance(
    whole: Write, ends: tuple[float, float], verdict: str
) -> None:
    """Of scores that are not right or wrong, which have no exact test."""
    free = {"low": ends[0], "high": ends[1], "mcnemar_p": np.nan}
    study = whole(item_contrasts=lambda table: table.assign(**free))
    for topic in ("Learning", "Forgetting"):
        changes, between = grids(study, topic)
        assert [row["shown"] for row in cells(changes).values()] == [verdict] * 2
        marked = [row["full minus this run"].endswith(" *") for row in cells(between).values()]
        assert marked == [verdict == "yes"]
        (count,) = sentences(study, topic)
        assert count.startswith(f"{2 if verdict == 'yes' else 0} of 2 runs are shown to differ from the base")
        assert "the interval excludes 0" in count


@pytest.mark.parametrize(("p_value", "verdict"), [(0.04, "yes"), (0.06, "no")])
def test_right_and_wrong_answers_are_judged_by_the_exact_test(
    whole: Write, p_value: float, verdict: str
) -> None:
    """The ends of their interval lie on few values, and the order of the items may decide on which."""
    study = whole(item_contrasts=lambda table: table.assign(low=0.01, high=0.02, mcnemar_p=p_value))
    changes, between = grids(study, "Learning")
    assert [row["shown"] for row in cells(changes).values()] == [verdict] * 2
    assert between.rows[0][1].endswith(" *") == (verdict == "yes")
    assert "McNemar's exact p below 0.05" in sentences(study, "Learning")[0]


def test_without_an_interval_there_is_no_verdict(whole: Write) -> None:
    few = {"low": np.nan, "high": np.nan, "mcnemar_p": np.nan, "reason": "6 to resample, fewer than 10"}
    study = whole(item_contrasts=lambda table: table.assign(**few))
    changes, between = grids(study, "Learning")
    assert "shown" not in changes.headers
    assert cells(changes)["full-seed42"]["no interval"] == "6 to resample, fewer than 10"
    assert cells(between)["lora-r8-seed42"]["full minus this run"] == "0 (6 to resample, fewer than 10)"
    assert sentences(study, "Learning") == []


def test_scores_of_which_less_is_better_say_so(whole: Write) -> None:
    study = whole(performance_metrics=lambda table: table.assign(higher_is_better=False))
    assert grids(study, "Learning")[0].caption.startswith("accuracy on topic (lower is better) at the last")


def test_other_items_leave_the_change_of_the_scores_alone(whole: Write) -> None:
    unknown = dict.fromkeys(("difference", "low", "high", "gained", "lost", "mcnemar_p"), np.nan)
    study = whole(item_contrasts=lambda table: table.assign(**unknown, reason="scored on different items"))
    changes, between = grids(study, "Learning")
    assert cells(changes)["full-seed42"] == {
        "step": "8",
        "accuracy on topic": "0.8700",
        "change from the base": "+0.450",
        "no interval": "scored on different items",
    }
    assert cells(between)["lora-r8-seed42"]["full minus this run"] == f"{MISSING} (scored on different items)"


@pytest.mark.parametrize("change", [{"step": 4}, {"metric": "f1"}], ids=["another step", "another metric"])
def test_contrasts_of_something_else_are_not_taken(whole: Write, change: dict[str, object]) -> None:
    (changes,) = grids(whole(item_contrasts=lambda table: table.assign(**change)), "Learning")
    assert [row["no interval"] for row in cells(changes).values()] == ["not in the table item_contrasts"] * 2


def test_means_over_seeds_are_of_changes_from_the_base(whole: Write) -> None:
    means, *_ = grids(whole(THREE_SEEDS), "Means and differences over seeds")
    assert list(cells(means)) == ["full", "lora-r8"]
    assert cells(means)["full"] == {  # perplexity is the NLL again
        "accuracy on topic, change": "+0.450 [0.420, 0.480] (n = 3)",
        "NLL of general text (nats a token), change": "+0.0500 [0.0300, 0.0700] (n = 3)",
    }
    unscored = whole(THREE_SEEDS, performance_metrics=lambda table: table[table["run"] != "base"])
    means, *_ = grids(unscored, "Means and differences over seeds")
    assert cells(means)["full"]["accuracy on topic, value"] == "0.870 [0.840, 0.900] (n = 3)"


def test_seeds_that_agree_have_a_mean_without_an_interval(whole: Write) -> None:
    alike = {"low": np.nan, "high": np.nan, "reason": "all 3 seeds give the same value"}
    study = whole(THREE_SEEDS, seed_means=lambda table: table.assign(**alike))
    means, *_ = grids(study, "Means and differences over seeds")
    assert (
        cells(means)["full"]["accuracy on topic, change"]
        == "+0.450 (all 3 seeds give the same value) (n = 3)"
    )


def test_means_and_differences_are_those_of_t_tests(whole: Write, tmp_path: Path) -> None:
    """From scores to sentences: what `seed_contrasts` makes of planted scores, against SciPy's t tests."""
    scores = {"full": np.array([0.80, 0.82, 0.87]), "lora": np.array([0.78, 0.81, 0.83])}

    def planted(table: pd.DataFrame) -> pd.DataFrame:
        for method, values in scores.items():
            rows = (table["method"] == method) & (table["task"] == "topic")
            table.loc[rows, "value"] = values[table.loc[rows, "seed"].to_numpy() - 1]
        return table

    performance = whole(THREE_SEEDS, performance_metrics=planted).tables["performance_metrics"]
    performance.to_parquet(tmp_path / "performance_metrics.parquet")
    made = compute_all([], Params(cache=tmp_path), tmp_path)
    study = whole(
        THREE_SEEDS,
        performance_metrics=planted,
        seed_means=lambda _: made["seed_means"],
        seed_contrasts=lambda _: made["seed_contrasts"],
    )
    means, accuracy, _ = grids(study, "Means and differences over seeds")
    mean = stats.ttest_1samp(scores["full"] - 0.42, 0).confidence_interval()
    ends = f"[{number(mean.low)}, {number(mean.high)}]"
    assert cells(means)["full"]["accuracy on topic, change"] == f"+0.410 {ends} (n = 3)"
    paired = stats.ttest_rel(scores["full"], scores["lora"])
    ends = "[{}, {}]".format(*map(number, paired.confidence_interval()))
    contrast = cells(accuracy)["full minus lora-r8"]
    assert (contrast["mean difference"], contrast["p"]) == (f"+0.0233 {ends}", number(paired.pvalue, 2))


def test_contrasts_over_seeds_say_what_was_shown_and_what_could_be(whole: Write) -> None:
    study = whole(THREE_SEEDS)
    _, accuracy, nll = grids(study, "Means and differences over seeds")
    assert cells(accuracy)["full minus lora-r8"] == {
        "seeds": "3",
        "mean difference": "+0.0200 [0.0133, 0.0267]",
        "p": "0.010",
        "p after Holm": "0.020",
        "shown": "yes",
        "detectable with 80 % power": "0.010 [0.0050, 0.060]",
        "two seeds of one arm: median, largest": "0.0050, 0.010 (3 pairs)",
    }
    assert cells(nll)["full minus lora-r8"]["mean difference"].startswith("+0.0300")
    first, _ = sentences(study, "Means and differences over seeds")
    assert first == (
        "1 of 1 pairs of arms are shown to differ in accuracy on topic: an interval without 0, and p at most "
        "0.05 after Holm's correction over tasks."
    )


def test_two_seeds_are_no_ground_for_what_could_be_detected(whole: Write) -> None:
    study = whole(THREE_SEEDS, seed_contrasts=lambda table: table.assign(seeds=2))
    _, accuracy, _ = grids(study, "Means and differences over seeds")
    assert "detectable with 80 % power" not in accuracy.headers


@pytest.mark.parametrize("change", [{"low": -0.01}, {"p_holm": 0.08}], ids=["interval", "Holm"])
def test_no_contrast_is_shown_that_chance_or_many_tasks_explain(
    whole: Write, change: dict[str, float]
) -> None:
    study = whole(THREE_SEEDS, seed_contrasts=lambda table: table.assign(**change))
    _, *contrasts = grids(study, "Means and differences over seeds")
    assert [cells(grid)["full minus lora-r8"]["shown"] for grid in contrasts] == ["no", "no"]
    found = sentences(study, "Means and differences over seeds")
    assert [text.startswith("None of 1 pairs") for text in found] == [True, True]


def test_of_many_pairs_the_surest_are_listed_and_all_counted(whole: Write) -> None:
    def many(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[table["seeds"] > 1]
        copies = [
            rows.assign(arm=f"arm{i}", p_value=0.9 - i / 100, p_holm=0.9, low=-1.0, high=1.0)
            for i in range(20)
        ]
        surest = rows.assign(arm="surest", p_value=0.95)  # its interval excludes 0
        return pd.concat([*copies, surest])

    study = whole(THREE_SEEDS, seed_contrasts=many)
    _, accuracy, _ = grids(study, "Means and differences over seeds")
    listed = [row[0] for row in accuracy.rows]
    assert listed == ["surest minus lora-r8", *(f"arm{i} minus lora-r8" for i in range(19, 8, -1))]
    assert "the 12 surest of 21 pairs" in accuracy.caption
    (first, _) = sentences(study, "Means and differences over seeds")
    assert first.startswith("1 of 21 pairs of arms are shown to differ in accuracy on topic: an interval")
    # p = 0.02 after Holm over tasks, times 21 pairs
    assert first.endswith(
        "Of 21 pairs that do not differ about 1 would seem to; corrected for the number of pairs as well, "
        "none are shown."
    )
    surer = whole(THREE_SEEDS, seed_contrasts=lambda table: many(table).replace({"p_holm": {0.02: 0.002}}))
    assert sentences(surer, "Means and differences over seeds")[0].endswith("as well, 1 are shown.")


def test_pairs_that_cannot_be_compared_are_counted(whole: Write) -> None:
    arms = (*THREE_SEEDS, ("lora", 4, 7))  # a seed that no other arm has
    alone = ["lora-r4"]
    study = whole(
        arms,
        seed_contrasts=lambda table: table[~table["arm"].isin(alone) & ~table["other_arm"].isin(alone)],
    )
    *_, said = sentences(study, "Means and differences over seeds")
    assert said == (
        "Of 3 pairs of arms 2 are not compared: they have no seed in common, or were trained on different "
        "tasks."
    )


def test_predictors_that_do_not_vary_are_named(whole: Write) -> None:
    def constant(table: pd.DataFrame) -> pd.DataFrame:
        here = table["predictor"] == "intruders_left"
        unknown = {"spearman": np.nan, "reason": "undefined: a constant; other"}
        return table.assign(**{name: table[name].mask(here, value) for name, value in unknown.items()})

    study = whole(forgetting_predictors=constant)
    headers = grids(study, "What goes with forgetting")[0].headers
    assert not any("intruders, left" in header for header in headers)
    assert sentences(study, "What goes with forgetting")[0] == (
        "No correlation with intruders, left (the published count): undefined: a constant."
    )


def test_what_did_not_change_is_no_drift_of_subspaces(whole: Write) -> None:
    """Matrices that an adapter leaves alone stay where they are, and are no measure of those it changes."""

    def attention_alone(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(update_norm=table["update_norm"].where(table["module"] == "q_proj", 0.0))

    def still(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(vector_drift=table["vector_drift"].where(table["module"] == "q_proj", 0.0))

    (found,) = grids(whole(svd_analysis_results=attention_alone, subspace_drift=still), "Leading subspaces")
    assert found.rows == grids(whole(), "Leading subspaces")[0].rows  # made up: modules drift alike


def test_edits_scored_on_several_tasks_are_told_once(whole: Write) -> None:
    def two_tasks(table: pd.DataFrame) -> pd.DataFrame:
        other = table[table["task"] == "topic"].assign(task="describe", metric="ter", higher_is_better=False)
        return pd.concat([table, other])

    study = whole(variant_scores=two_tasks)
    assert len(sentences(study, "Interventions on intruders")) == 2  # runs
    found = grids(study, "Interventions on intruders")[0]
    assert "change of ter on describe (lower is better)" in found.headers
    alone = whole(variant_scores=lambda table: table[table["task"] == "general_text"])
    found = grids(alone, "Interventions on intruders")[0]
    assert found.headers[-1] == "change of the NLL (nats a token)"


def test_one_shared_seed_shows_nothing(whole: Write) -> None:
    study = whole()
    assert sentences(study, "Means and differences over seeds") == [
        "Pairs of arms with one seed in common: 1; no interval, nothing shown."
    ]
    at_loss, _ = grids(study, "Equal learning, equal update")
    row = cells(at_loss)["full minus lora-r8"]
    assert row["difference, 95 % paired t interval"] == "+0.0300 (one seed: no interval)"
    assert row["shown"] == "nothing"


def test_matched_arms_are_compared_at_the_furthest_level(whole: Write) -> None:
    at_loss, at_size = grids(whole(THREE_SEEDS), "Equal learning, equal update")
    assert "at equal validation loss" in at_loss.caption
    assert cells(at_loss)["full minus lora-r8"] == {
        "seeds": "3",
        "at": "0.500 nats a target token",
        "first": "0.0500",
        "second": "0.0200",
        "difference, 95 % paired t interval": "+0.0300 [0.0200, 0.0400]",
        "shown": "lora-r8 forgets less",
        "difference over all levels": "+0.0300 to +0.0300",
    }
    assert "at equal relative size of the update" in at_size.caption
    assert cells(at_size)["full minus lora-r8"]["at"] == "0.00400"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"low": -0.01}, "nothing"),
        ({"difference": -0.03, "low": -0.04, "high": -0.02}, "full forgets less"),
    ],
    ids=["within the interval", "the other way"],
)
def test_matched_verdicts(whole: Write, change: Any, verdict: str) -> None:
    study = whole(THREE_SEEDS, matched_comparison=lambda table: table.assign(**change))
    found = grids(study, "Equal learning, equal update")
    assert [cells(grid)["full minus lora-r8"]["shown"] for grid in found] == [verdict] * 2


def test_unmatched_arms_are_counted_with_the_reason(whole: Write) -> None:
    unmatched = {"difference": np.nan, "reason": "no value that all reach"}
    study = whole(THREE_SEEDS, matched_comparison=lambda table: table.assign(**unmatched))
    assert grids(study, "Equal learning, equal update") == []
    assert sentences(study, "Equal learning, equal update") == [
        f"At equal {what} 1 of 1 pairs of arms have no comparison: no value that all reach."
        for what in ("validation loss", "relative size of the update")
    ]


def test_predictors_are_stated_with_their_intervals(whole: Write) -> None:
    (found,) = grids(whole(), "What goes with forgetting")
    row = cells(found)["all 24 checkpoints: 12 runs of 6 arms"]
    assert row["KL from the base, same text"] == "0.90 [0.700, 0.950]"
    assert list(row)[1] == "relative size of the update"
    study = whole(forgetting_predictors=lambda table: table.assign(spearman_low=np.nan, runs=3, scope="lora"))
    (found,) = grids(study, "What goes with forgetting")
    assert (
        cells(found)["all 24 checkpoints: 3 lora runs of 6 arms"]["KL from the base, same text"]
        == "0.90 (no interval)"
    )
    assert "nothing is shown" in sentences(study, "What goes with forgetting")[0]


def test_task_vectors_tell_runs_of_one_seed_from_others(whole: Write) -> None:
    def alike_with_one_seed(table: pd.DataFrame) -> pd.DataFrame:
        one_seed = (table["seed"] == table["other_seed"]) & (table["run"] != table["other_run"])
        return table.assign(cosine=table["cosine"].mask(one_seed, 0.7))

    def named_the_other_way(table: pd.DataFrame) -> pd.DataFrame:
        table = alike_with_one_seed(table)
        columns = ["run", "method", "rank", "tasks", "seed", "step"]
        others = [f"other_{column}" for column in columns]
        return table.rename(columns=dict(zip([*columns, *others], [*others, *columns], strict=True)))

    turned = whole(THREE_SEEDS, task_vectors=named_the_other_way)
    assert grids(turned, "Task vectors") == grids(
        whole(THREE_SEEDS, task_vectors=alike_with_one_seed), "Task vectors"
    )
    cosines, conflicts = grids(whole(THREE_SEEDS, task_vectors=alike_with_one_seed), "Task vectors")
    assert cosines.headers == ("", "full", "lora-r8")
    assert cosines.rows == (("full", "0.500", "0.700"), ("lora-r8", "0.0500", "0.500"))
    assert [row[0] for row in conflicts.rows] == ["full", "lora-r8"]
    assert "within ±0.0020" in sentences(whole(THREE_SEEDS), "Task vectors")[0]


def test_intruders_are_stated_beside_random_directions(whole: Write) -> None:
    # made up: from threshold 0.5 on one of k = 10 vectors in one of 3 layers
    _, over = grids(whole(), "Intruder dimensions")
    assert "10 leading vectors" in over.caption
    lora, random = cells(over)["lora-r8"], cells(over)["random directions, the most of any arm"]
    assert (lora["0.3"], lora["0.9"]) == ("0 %", "3.33 %")
    assert (random["0.3"], random["0.9"]) == ("100 %", "100 %")


def test_subspaces_and_what_the_naive_distance_would_say(whole: Write) -> None:
    (found,) = grids(whole(), "Leading subspaces")
    drift = number(0.05 * (1 + 1 / 3) * (10 / 32) ** 0.2)  # mean over layers 0, 1, 2 of 3
    full = cells(found)["full-seed42"]
    assert (full["left"], full["right"]) == (drift, drift)
    assert full["matrices with a gap above twice the update"] == "0 %"
    overlap = whole().tables["subspace_drift"].query("k == 10 and layer >= 0")["overlap_random"]
    assert float(full["unrelated spans"]) == pytest.approx(np.sqrt(1 - overlap).mean(), rel=2e-3)
    assert sentences(whole(), "Leading subspaces")[0].startswith(
        "The naive distance of the same vectors would say 0.680 to 0.680"
    )


def test_drift_is_stated_by_representation(whole: Write) -> None:
    _, found = grids(whole(), "Drift of the representations")
    assert cells(found)["full-seed42"] == {
        f"{pooled}, {features}": text
        for features in ("all dimensions", "without those of largest variance")
        for pooled, text in {
            "means of the tokens": "0.9400 ± 0.0075",
            "last tokens": "0.8800 ± 0.015",
            "single tokens": "0.8200 ± 0.022",
        }.items()
    }
    assert sentences(whole(), "Drift of the representations") == [
        "In 2 of 2 runs every state is, by CKA, most like the same state of the base. Of 0 that are more "
        "like another one, 0 are so by more than 1.96 standard errors of their CKA with their own."
    ]


def test_layers_that_changed_places_are_named(whole: Write) -> None:
    def swapped(table: pd.DataFrame) -> pd.DataFrame:
        here = (table["run"] == "full-seed42") & (table["tuned_layer"] == 2) & (table["base_layer"] == 1)
        return table.assign(cka=table["cka"].mask(here, 0.96))

    def error(stderr: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
        return lambda table: table.assign(cka_stderr=stderr)

    own = whole().tables["layer_similarity"].query("run == 'full-seed42' and tuned_layer == base_layer == 2")
    gap = 0.96 - own["cka"].iloc[-1]
    sure = whole(layer_similarity=swapped, drift_metrics=error(gap / 2))
    *_, places = grids(sure, "Drift of the representations")
    assert cells(places) == {"full-seed42": {"tuned state (base state)": "2 (1)"}}
    assert "In 1 of 2 runs" in sentences(sure, "Drift of the representations")[0]
    unsure = whole(layer_similarity=swapped, drift_metrics=error(gap / 1.9))
    assert (
        "Of 1 that are more like another one, 0 are" in sentences(unsure, "Drift of the representations")[0]
    )
    assert len(grids(unsure, "Drift of the representations")) == 2


def test_gradients_are_stated_at_first_and_at_last(whole: Write) -> None:
    def growing(table: pd.DataFrame) -> pd.DataFrame:
        deep = np.where(table["level"] == "layer", table["layer"], 0)
        return table.assign(l2_norm=table["step"] + deep)

    (found,) = grids(whole(((("full", 0, 42),)), gradient_analysis_results=growing), "Gradients")
    assert cells(found)["full-seed42"] == {  # eight steps: a third is two
        "probed steps": "8 (1 to 8)",
        "at first": "1.50",
        "at last": "7.50",
        "largest layer": "2",
        "smallest layer": "0",
    }


def test_a_table_without_rows_is_not_printed(whole: Write) -> None:
    study = whole(gradient_analysis_results=lambda table: table[table["level"] == "layer"])
    assert parts(study, "Gradients") == []


def test_gradients_of_tasks_are_a_conflict_only_beyond_their_error(whole: Write) -> None:
    cosines, noise = grids(whole(), "Gradients of the tasks")
    found = {(row[0], row[1]): row[2:] for row in cosines.rows}
    assert len(cosines.rows) == len(found) == 2 * 3  # two runs, pairs of three tasks
    aligned = found["full-seed42", "entailment with topic"]
    assert aligned == ("0 ± 0.050", "0", "no direction shown")
    conflict = found["full-seed42", "general_text with topic"]
    assert conflict == ("-1.00 ± 0.050", "-0.600", "a conflict")
    assert cells(noise)["full-seed42"]["topic"] == "80.0 ± 16"
    assert cells(noise)["full-seed42"].get("general_text", MISSING) == MISSING
    (unknown_scales,) = sentences(whole(), "Gradients of the tasks")
    assert unknown_scales.startswith("Of 6 gradients (a run and task each, 32 rows), 2 are not told from 0")
    small = whole(
        task_gradients=lambda table: table.assign(cosine_corrected=0.09, cosine_corrected_stderr=0.05)
    )
    assert {row[-1] for row in grids(small, "Gradients of the tasks")[0].rows} == {"no direction shown"}
    unknown = {"cosine_corrected": np.nan, "reason": "|G|² of topic is not above 0"}
    study = whole(task_gradients=lambda table: table.assign(**unknown))
    cosines, _ = grids(study, "Gradients of the tasks")
    assert {row[-1] for row in cosines.rows} == {"|G|² of topic is not above 0"}


@pytest.mark.parametrize(("errors", "given"), [(2.3, 0), (2.4, 2)])  # t of 8 shards: 2.365
def test_noise_scales_are_given_of_gradients_that_are_told_from_0(
    whole: Write, errors: float, given: int
) -> None:
    study = whole(
        gradient_noise=lambda table: table[table["task"] == "topic"].assign(
            gradient_square=errors, gradient_square_stderr=1.0
        )
    )
    noise = [grid for grid in grids(study, "Gradients of the tasks") if "Noise scale" in grid.caption]
    assert sum(len(grid.rows) for grid in noise) == given
    assert any(
        "2 are not told from 0" in text for text in sentences(study, "Gradients of the tasks")
    ) != bool(given)


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        (
            {"intruders": (-0.023, -0.017)},
            "lowers this model's NLL more than every control does, beyond both intervals.",
        ),
        (
            {"intruders": (-0.03, -0.01)},
            "not lower the NLL more than neighbours, random, shrunk, rescaled beyond both",
        ),
        (
            {"random": (-0.025, -0.005)},
            "Editing intruders does not lower the NLL more than random beyond both",
        ),
        (
            {"random": (np.nan, np.nan)},
            "Editing intruders does not lower the NLL more than random beyond both",
        ),
        ({"intruders": (-0.05, 0.01)}, "That editing intruders lowers the NLL is not shown"),
        ({"intruders": (np.nan, np.nan)}, "Whether editing intruders lowers the NLL is not known"),
    ],
)
def test_intruders_are_blamed_only_beyond_every_control(
    whole: Write, ends: dict[str, tuple[float, float]], verdict: str
) -> None:
    def changed(table: pd.DataFrame) -> pd.DataFrame:
        for arm, (low, high) in ends.items():
            rows = (table["arm"] == arm) & (table["metric"] == "nll")
            table.loc[rows, ["difference_low", "difference_high"]] = low, high
        return table

    study = whole(variant_scores=changed)
    assert verdict in sentences(study, "Interventions on intruders")[0]
    rescaled = cells(grids(study, "Interventions on intruders")[0])["rescaled"]
    assert (rescaled["size of the edit"], rescaled["size of the update left"]) == ("1.00 %", "2.00 %")
    assert rescaled["change of the NLL (nats a token)"] == "-0.0100 [-0.0130, -0.00700]"


def test_edits_of_other_settings_are_no_controls(whole: Write) -> None:
    def looser(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[(table["kind"] == "intervention") & (table["run"] == "full-seed42")]
        return rows.assign(threshold=rows["threshold"].where(rows["arm"] == "intruders", 0.9))

    study = whole(variant_scores=looser)
    intruders, controls = grids(study, "Interventions on intruders")
    assert intruders.caption.startswith(
        "full-seed42, singular values times 0 (all of the intruders among 10 leading vectors at the "
        "threshold 0.5). Sizes are shares of the base's norm, the update's 0.473 % before;"
    )
    assert list(cells(intruders)) == ["intruders"]
    assert "intruders" not in cells(controls)
    assert sentences(study, "Interventions on intruders") == []


def test_the_best_points_of_a_line_are_said_to_be_chosen(whole: Write) -> None:
    (found,) = grids(whole(), "Between base and tuned weights")
    full = cells(found)["full-seed42"]
    assert full["best accuracy on topic"] == "0.870 at t = 1, the tuned model's own"
    assert full["lowest NLL of general text"].startswith("3.10 at t = 0: -0.0400 [-0.0430")
    assert "do not allow for the choice" in sentences(whole(), "Between base and tuned weights")[0]


def test_an_embedding_is_named_without_a_layer(whole: Write) -> None:
    def with_embedding(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[(table["layer"] == 0) & (table["module"] == "q_proj")]
        outside = rows.assign(layer=-1, module="embed_tokens", relative_update_norm=0.5)
        untouched = rows.assign(layer=-1, module="lm_head", update_norm=0.0, bf16_floor_ratio=0.0)
        return pd.concat([table, outside, untouched])

    (found,) = grids(whole(svd_analysis_results=with_embedding), "Size of the update")
    full = cells(found)["full-seed42"]
    assert (full["which"], full["largest of a matrix"]) == ("embed_tokens", "50.0 %")
    assert (full["matrices"], full["changed"], full["below bf16's rounding"]) == ("23", "22", "0")
