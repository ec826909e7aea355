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

from rankdrift.analysis.analyses import Params
from rankdrift.analysis.analyses.seed_contrasts import compute_all
from rankdrift.analysis.report.findings import TOPICS
from rankdrift.analysis.report.grids import number
from rankdrift.analysis.report.study import Study
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
    return list(TOPICS[topic](study))


def test_changes_from_the_base_are_stated_with_their_interval_over_items(whole: Write) -> None:
    study = whole()
    assert sentences(study, "Learning")[0] == (
        "full-seed42: accuracy on topic is 0.870 at step 8, 0.420 for the base model: a change of +0.450 "
        "over 400 items, 95 % BCa interval [0.400, 0.500], McNemar's p = 1.0e-09 (200 items gained, 20 "
        "lost), more than the choice of items may explain."
    )
    assert sentences(study, "Forgetting")[0] == (
        "full-seed42: on general text, NLL per token 3.15 nats, a change of +0.0500 over 48 windows of 12 "
        "documents, 95 % BCa interval [0.0400, 0.0600], more than the choice of items may explain; KL from "
        "the base 0.0700 nats a token, standard error 0.0050."
    )


def test_full_fine_tuning_is_compared_with_other_runs_of_its_seed(whole: Write) -> None:
    study = whole((*THREE_SEEDS, ("lora", 4, 1)))
    compared = [text for text in sentences(study, "Learning") if " minus " in text]
    assert [text.split(",")[0] for text in compared] == [
        "full-seed1 minus lora-r4-seed1",  # and LoRA's ranks not with each other
        "full-seed1 minus lora-r8-seed1",
        "full-seed2 minus lora-r8-seed2",
        "full-seed3 minus lora-r8-seed3",
    ]
    assert compared[0].endswith(
        "accuracy on topic: a difference of 0 over 400 items, 95 % BCa interval [-0.0200, 0.0200], McNemar's "
        "p = 1.0 (20 items gained, 20 lost), no more than the choice of items may explain."
    )
    assert (
        "full-seed1 minus lora-r4-seed1, NLL of general text (nats a token): a difference of +0.0300 over 48 "
        "windows of 12 documents, 95 % BCa interval [0.0200, 0.0400], more than the choice of items may "
        "explain."
    ) in sentences(study, "Forgetting")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_runs_of_one_method_are_not_compared(whole: Write, method: str) -> None:
    study = whole(performance_metrics=lambda table: table.replace({"full": method, "lora": method}))
    found = [*sentences(study, "Learning"), *sentences(study, "Forgetting")]
    assert len(found) == 4
    assert not any(" minus " in text for text in found)


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((0.01, 0.02), ", more than the choice"),
        ((-0.02, -0.01), ", more than the choice"),
        ((-0.01, 0.02), ", no more than the choice"),
        ((0.0, 0.02), ", no more than the choice"),
    ],
)
def test_only_an_interval_without_0_is_more_than_chance(
    whole: Write, ends: tuple[float, float], verdict: str
) -> None:
    study = whole(item_contrasts=lambda table: table.assign(low=ends[0], high=ends[1]))
    found = [*sentences(study, "Learning"), *sentences(study, "Forgetting")]
    assert len(found) == 6
    assert all(verdict in text for text in found)


def test_without_an_interval_there_is_no_verdict(whole: Write) -> None:
    few = {"low": np.nan, "high": np.nan, "reason": "6 to resample, fewer than 10"}
    study = whole(item_contrasts=lambda table: table.assign(**few))
    *_, compared = sentences(study, "Learning")
    assert compared.endswith(
        "a difference of 0 over 400 items, without an interval (6 to resample, fewer than 10), McNemar's "
        "p = 1.0 (20 items gained, 20 lost)."
    )
    assert not any("may explain" in text for text in sentences(study, "Forgetting"))


def test_other_items_leave_the_change_of_the_scores_alone(whole: Write) -> None:
    unknown = dict.fromkeys(("difference", "low", "high", "gained", "lost", "mcnemar_p"), np.nan)
    study = whole(item_contrasts=lambda table: table.assign(**unknown, reason="scored on different items"))
    first, _, compared = sentences(study, "Learning")
    assert first.endswith("a change of +0.450, without an interval over items (scored on different items).")
    assert compared == (
        "full-seed42 minus lora-r8-seed42, accuracy on topic: no comparison; scored on different items."
    )


@pytest.mark.parametrize("change", [{"step": 4}, {"metric": "f1"}], ids=["another step", "another metric"])
def test_contrasts_of_something_else_are_not_taken(whole: Write, change: dict[str, object]) -> None:
    found = sentences(whole(item_contrasts=lambda table: table.assign(**change)), "Learning")
    assert len(found) == 2
    assert all("an interval over items (not in the table item_contrasts)" in text for text in found)


def test_means_over_seeds_are_of_changes_from_the_base(whole: Write) -> None:
    found = sentences(whole(THREE_SEEDS), "Means and differences over seeds")
    full, nll, *others = [text for text in found if "t interval" in text and " minus " not in text]
    assert len(others) == 2  # LoRA's; perplexity is the NLL again
    assert full == (
        "full: mean change of accuracy on topic +0.450, 95 % t interval [0.420, 0.480] over 3 seeds."
    )
    assert nll == (
        "full: mean change of NLL of general text (nats a token) +0.0500, 95 % t interval [0.0300, 0.0700] "
        "over 3 seeds."
    )
    unscored = whole(THREE_SEEDS, performance_metrics=lambda table: table[table["run"] != "base"])
    full, *_ = sentences(unscored, "Means and differences over seeds")
    assert full == "full: mean accuracy on topic 0.870, 95 % t interval [0.840, 0.900] over 3 seeds."


def test_seeds_that_agree_have_a_mean_without_an_interval(whole: Write) -> None:
    alike = {"low": np.nan, "high": np.nan, "reason": "all 3 seeds give the same value"}
    study = whole(THREE_SEEDS, seed_means=lambda table: table.assign(**alike))
    assert sentences(study, "Means and differences over seeds")[0] == (
        "full: mean change of accuracy on topic +0.450 over 3 seeds; all 3 seeds give the same value."
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
    found = sentences(study, "Means and differences over seeds")
    mean = stats.ttest_1samp(scores["full"] - 0.42, 0).confidence_interval()
    ends = f"[{number(mean.low)}, {number(mean.high)}]"
    assert f"full: mean change of accuracy on topic +0.410, 95 % t interval {ends} over 3 seeds." in found
    paired = stats.ttest_rel(scores["full"], scores["lora"])
    ends = "[{}, {}]".format(*map(number, paired.confidence_interval()))
    text = "full minus lora-r8, accuracy on topic: mean difference +0.0233, 95 % paired t interval"
    p_value = number(paired.pvalue, 2)
    assert any(sentence.startswith(f"{text} {ends} over 3 seeds, p = {p_value}") for sentence in found)


def test_contrasts_over_seeds_say_what_was_shown_and_what_could_be(whole: Write) -> None:
    *_, accuracy, nll = sentences(whole(THREE_SEEDS), "Means and differences over seeds")
    assert accuracy == (
        "full minus lora-r8, accuracy on topic: mean difference +0.0200, 95 % paired t interval "
        "[0.0133, 0.0267] over 3 seeds, p = 0.010 (Holm over tasks: 0.020): a difference is shown; the least "
        "that so many seeds of this spread show with 80 % power is 0.010. Two seeds of one of these arms "
        "differ by 0.0050 in the median, at most 0.010 (3 pairs)."
    )
    assert nll.startswith("full minus lora-r8, NLL of general text (nats a token): mean difference +0.0300")


@pytest.mark.parametrize("change", [{"low": -0.01}, {"p_holm": 0.08}], ids=["interval", "Holm"])
def test_no_contrast_is_shown_that_chance_or_many_tasks_explain(
    whole: Write, change: dict[str, float]
) -> None:
    study = whole(THREE_SEEDS, seed_contrasts=lambda table: table.assign(**change))
    found = [text for text in sentences(study, "Means and differences over seeds") if " minus " in text]
    assert len(found) == 2
    assert all("no difference is shown" in text for text in found)


def test_one_shared_seed_shows_nothing(whole: Write) -> None:
    study = whole()
    assert sentences(study, "Means and differences over seeds") == [
        "full and lora-r8: one seed in common, hence no interval and nothing shown over seeds."
    ]
    at_loss, _ = sentences(study, "Equal learning, equal update")
    assert at_loss.endswith("difference +0.0300; one seed: no interval; nothing is shown.")


def test_matched_arms_are_compared_at_the_furthest_level(whole: Write) -> None:
    at_loss, at_size = sentences(whole(THREE_SEEDS), "Equal learning, equal update")
    assert at_loss == (
        "full against lora-r8 at equal validation loss: at 0.500 nats a target token, the furthest all runs "
        "reach, the NLL increase is 0.0500 and 0.0200 nats a token, difference +0.0300, 95 % paired t "
        "interval [0.0200, 0.0400] over 3 seeds: lora-r8 forgets less there; over all 3 levels the "
        "difference lies between +0.0300 and +0.0300."
    )
    assert "equal relative size of the update: at 0.00400, the furthest" in at_size


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"low": -0.01}, "seeds: no difference is shown"),
        ({"difference": -0.03, "low": -0.04, "high": -0.02}, "seeds: full forgets less there"),
        (
            {"difference": np.nan, "reason": "no value that all reach"},
            "no comparison; no value that all reach.",
        ),
    ],
    ids=["within the interval", "the other way", "unmatched"],
)
def test_matched_verdicts(whole: Write, change: Any, verdict: str) -> None:
    study = whole(THREE_SEEDS, matched_comparison=lambda table: table.assign(**change))
    assert all(verdict in sentence for sentence in sentences(study, "Equal learning, equal update"))


def test_predictors_are_stated_where_they_have_intervals(whole: Write) -> None:
    found, caution = sentences(whole(), "What goes with forgetting")
    assert found.startswith(
        "Rank correlation with the NLL increase over all 24 checkpoints of 12 runs: KL from the base 0.90 "
        "[0.700, 0.950]; relative size"
    )
    assert "no cause" in caution
    study = whole(forgetting_predictors=lambda table: table.assign(spearman_low=np.nan, runs=3, scope="lora"))
    assert sentences(study, "What goes with forgetting") == [
        "Correlations over all 24 checkpoints of 3 lora runs have no interval: nothing is shown by these."
    ]


def test_task_vectors_of_seeds_and_of_arms(whole: Write) -> None:
    between, seeds, _ = sentences(whole(THREE_SEEDS), "Task vectors")
    assert between.startswith(
        "full and lora-r8: task vectors have a cosine of 0.0500 (mean of 9 pairs of runs, 0.0500 to 0.0500), "
        "unrelated directions one within ±0.0020; of the entries"
    )
    assert seeds.startswith("seeds of full: task vectors have a cosine of 0.500 (mean of 3 pairs")


def test_intruders_are_stated_beside_random_directions(whole: Write) -> None:
    # made up: from threshold 0.5 on one of k = 10 vectors in one of 3 layers
    assert (
        "lora-r8: of the 10 leading vectors of both sides, 0 % are intruders at the threshold 0.3 and 3.33 % "
        "at 0.9; of random directions 100 % and 100 % would be."
    ) in sentences(whole(), "Intruder dimensions")


def test_subspaces_and_what_the_naive_distance_would_say(whole: Write) -> None:
    full, _, naive = sentences(whole(), "Leading subspaces")
    drift = number(0.05 * (1 + 1 / 3) * (10 / 32) ** 0.2)  # mean over layers 0, 1, 2 of 3
    assert f"turned by {drift} (left), {drift} (right)" in full
    assert "in 0 % of them" in full
    assert naive.startswith("The naive distance of the same vectors would say 0.680 to 0.680")


def test_drift_is_stated_by_representation(whole: Write) -> None:
    found = sentences(whole(), "Drift of the representations")
    assert (
        "full-seed42: lowest CKA ± its standard error over inputs, of all dimensions 0.9400 ± 0.0075 (means "
        "of the tokens), 0.8800 ± 0.015 (last tokens), 0.8200 ± 0.022 (single tokens); without those of "
        "largest variance 0.9400 ± 0.0075 (means of the tokens), 0.8800 ± 0.015 (last tokens), 0.8200 ± "
        "0.022 (single tokens)."
    ) in found
    assert (
        found[-1]
        == "full-seed42, lora-r8-seed42: by CKA, every layer is most like the same layer of the base."
    )


def test_layers_that_changed_places_are_named(whole: Write) -> None:
    def swapped(table: pd.DataFrame) -> pd.DataFrame:
        here = (table["run"] == "full-seed42") & (table["tuned_layer"] == 2) & (table["base_layer"] == 1)
        return table.assign(cka=table["cka"].mask(here, 0.96))

    found = sentences(whole(layer_similarity=swapped), "Drift of the representations")
    assert "full-seed42: by CKA, these layers are more like another layer of the base: 2 (like 1)." in found


def test_gradients_of_tasks_are_a_conflict_only_beyond_their_error(whole: Write) -> None:
    cosines, _, noise, _ = sentences(whole(), "Gradients of the tasks")
    assert "entailment with topic 0 ± 0.050 (0 as observed): no direction shown" in cosines
    assert "general_text with topic -1.00 ± 0.050 (-0.600 as observed): a conflict" in cosines
    assert "topic 80.0 rows ± 16; entailment 80.0 rows ± 16; general_text undefined (|G|² is" in noise
    unknown = {"cosine_corrected": np.nan, "reason": "|G|² of topic is not above 0"}
    study = whole(task_gradients=lambda table: table.assign(**unknown))
    sentence = sentences(study, "Gradients of the tasks")[0]
    assert "0 as observed; not corrected for noise (|G|² of topic is not above 0)" in sentence


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        (
            {"intruders": (-0.023, -0.017)},
            "lowers the NLL more than every control does, beyond both intervals.",
        ),
        (
            {"intruders": (-0.03, -0.01)},
            "not lower the NLL more than neighbours, random, rescaled beyond both",
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
        ({"intruders": (np.nan, np.nan)}, "That editing intruders lowers the NLL is not shown"),
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

    first = sentences(whole(variant_scores=changed), "Interventions on intruders")[0]
    assert verdict in first
    assert "rescaled (edit of 1.00 % of the base's norm) NLL -0.0100 [-0.0130, -0.00700]" in first


def test_edits_of_other_settings_are_no_controls(whole: Write) -> None:
    def looser(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[(table["kind"] == "intervention") & (table["run"] == "full-seed42")]
        return rows.assign(threshold=rows["threshold"].where(rows["arm"] == "intruders", 0.9))

    intruders, controls = sentences(whole(variant_scores=looser), "Interventions on intruders")
    assert intruders.startswith(
        "full-seed42, singular values times 0 (all of the intruders among 10 leading vectors at the "
        "threshold 0.5), score accuracy on topic: intruders (edit"
    )
    assert "Editing intruders" not in intruders + controls


def test_the_best_points_of_a_line_are_said_to_be_chosen(whole: Write) -> None:
    sentence = sentences(whole(), "Between base and tuned weights")[0]
    assert "best accuracy on topic 0.870 at t = 1, the tuned model's own" in sentence
    assert "lowest NLL of general text 3.10 at t = 0, against the tuned model's -0.0400 [-0.0430" in sentence
    assert "do not allow for the choice" in sentence


def test_an_embedding_is_named_without_a_layer(whole: Write) -> None:
    def with_embedding(table: pd.DataFrame) -> pd.DataFrame:
        rows = table[(table["layer"] == 0) & (table["module"] == "q_proj")]
        outside = rows.assign(layer=-1, module="embed_tokens", relative_update_norm=0.5)
        untouched = rows.assign(layer=-1, module="lm_head", update_norm=0.0, bf16_floor_ratio=0.0)
        return pd.concat([table, outside, untouched])

    sentence = sentences(whole(svd_analysis_results=with_embedding), "Size of the update")[0]
    assert "largest in embed_tokens (50.0 %); in none of them it is smaller than the rounding" in sentence
