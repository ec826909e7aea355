"""What the findings say of the tables over seeds, directions, representations and edited models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.report.findings import findings
from rankdrift.analysis.report.grids import number
from rankdrift.analysis.report.study import Study
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
Write = Callable[..., Study]
ONE_SEED = (("lora", 8, 42), ("full", 0, 42))
THREE_SEEDS = tuple((method, rank, seed) for seed in (1, 2, 3) for method, rank in (("full", 0), ("lora", 8)))


@pytest.fixture
def whole(tmp_path: Path, make_tables: Callable[..., Tables]) -> Write:
    """Return write(runs, table=change, ...) -> a study with all tables, some of them changed."""

    def write(runs: Any = ONE_SEED, **changed: Callable[[pd.DataFrame], pd.DataFrame]) -> Study:
        tables = make_tables(runs, [4, 8], 3, ["mean", "last_token", "token"])
        tables |= {name: change(tables[name]) for name, change in changed.items()}
        return Study(StudyLayout(tmp_path), recipe={}, tables=tables, metas={}, runs=())

    return write


def sentences(study: Study, topic: str) -> list[str]:
    return list({found.title: found.sentences for found in findings(study)}.get(topic, ()))


def test_contrasts_over_seeds_say_what_was_shown_and_what_could_be(whole: Write) -> None:
    accuracy, nll = sentences(whole(THREE_SEEDS), "Differences over seeds")
    assert accuracy == (
        "full minus lora-r8, accuracy on topic: mean difference +0.0200, 95 % paired t interval "
        "[0.0133, 0.0267] over 3 seeds, p = 0.010 (Holm over tasks: 0.020): a difference is shown; the least "
        "that so many seeds of this spread show with 80 % power is 0.010. Two seeds of one of these arms "
        "differ by 0.0050 in the median, at most 0.010 (3 pairs)."
    )
    assert nll.startswith("full minus lora-r8, NLL of general text: mean difference +0.0300")


@pytest.mark.parametrize("change", [{"low": -0.01}, {"p_holm": 0.08}], ids=["interval", "Holm"])
def test_no_contrast_is_shown_that_chance_or_many_tasks_explain(
    whole: Write, change: dict[str, float]
) -> None:
    study = whole(THREE_SEEDS, seed_contrasts=lambda table: table.assign(**change))
    assert all("no difference is shown" in text for text in sentences(study, "Differences over seeds"))


def test_one_shared_seed_shows_nothing(whole: Write) -> None:
    study = whole()
    assert sentences(study, "Differences over seeds") == [
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
        table = table.copy()
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
