from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.sources import observations
from rankdrift.training.journal import PARTS


def performance(values: list[tuple[str, int, str, str, float]]) -> pd.DataFrame:
    rows = pd.DataFrame(values, columns=["run", "step", "task", "metric", "value"])
    role = np.where(rows["task"] == "general_text", "text", "trained")
    return rows.assign(role=role, method="full", rank=0, tasks="topic", seed=1, stderr=0.25)


def spectra(norms: list[tuple[float, float]]) -> pd.DataFrame:
    rows = pd.DataFrame(norms, columns=["update_norm", "base_norm"])
    return rows.assign(run="full-seed1", method="full", rank=0, seed=1, step=4, module=["q_proj", "v_proj"])


def gradients(rows: list[tuple[str, int, float, float, float]]) -> pd.DataFrame:
    names = ["factor", "numel", "l2_norm", "mean_abs", "zero_fraction"]
    shared = {"run": "lora-r8-seed1", "method": "lora", "rank": 8, "seed": 1, "step": 1}
    return pd.DataFrame(rows, columns=names).assign(**shared, level="global", layer=-1, group="")


def test_last_checkpoints_are_each_runs_own_and_never_the_base() -> None:
    table = pd.DataFrame({"run": ["base", "a", "a", "b"], "step": [0, 2, 4, 3]})
    found = observations.last_checkpoints(table)
    assert list(zip(found["run"], found["step"], strict=True)) == [("a", 4), ("b", 3)]


def test_general_text_is_no_task_and_the_first_metric_leads() -> None:
    table = performance(
        [("a", 1, "t", "f1", 0.1), ("a", 1, "t", "acc", 0.2), ("a", 1, "general_text", "nll", 3)]
    )
    assert observations.leading_metrics(table) == [("t", "f1")]


def test_retention_tasks_and_prompts_do_not_lead() -> None:
    table = performance(
        [("a", 1, "piqa", "acc", 0.1), ("a", 1, "t", "f1", 0.1), ("a", 1, "t_prompts", "nll", 3)]
    )
    table["role"] = ["retention", "trained", "text"]
    assert observations.leading_metrics(table) == [("t", "f1")]
    assert observations.role_leads(table, "retention") == [("piqa", "acc")]


def test_forgetting_by_retention_tasks_and_prompts() -> None:
    """Mean accuracy falls from 0.5 to 0.375; KL 0.5 and 0.25 on two tasks' prompts, errors 0.25 each."""
    values = [("base", 0, "retention", "mean_accuracy", 0.5), ("a", 2, "retention", "mean_accuracy", 0.375)]
    values += [("a", 2, "t_prompts", "kl_from_base", 0.5), ("a", 2, "u_prompts", "kl_from_base", 0.25)]
    table = performance(values).assign(role=["retention"] * 2 + ["text"] * 2)
    (row,) = observations.forgetting(table).to_dict("records")
    assert (row["retention_drop"], row["prompt_kl"]) == (0.125, 0.375)
    assert row["retention_stderr"] == pytest.approx(0.25 * 2**0.5)
    assert row["prompt_kl_stderr"] == pytest.approx(0.25 * 2**0.5 / 2)
    assert np.isnan(row["nll_increase"])


def test_forgetting_is_the_increase_over_the_base() -> None:
    values = [("base", 0, "general_text", "nll", 3.0), ("a", 2, "general_text", "nll", 3.5)]
    values += [("a", 2, "general_text", "kl_from_base", 0.125)]
    row = observations.forgetting(performance(values)).iloc[0]
    assert (row["nll_increase"], row["kl_from_base"], row["kl_stderr"]) == (0.5, 0.125, 0.25)


def test_forgetting_without_the_base_is_undefined_not_zero() -> None:
    row = observations.forgetting(performance([("a", 2, "general_text", "nll", 3.5)])).iloc[0]
    assert np.isnan(row["nll_increase"])
    assert np.isnan(row["kl_from_base"])


def test_relative_update_adds_squares_over_matrices() -> None:
    sizes = observations.update_sizes(spectra([(3.0, 30.0), (4.0, 40.0)]))
    assert sizes["relative_update_norm"].tolist() == [pytest.approx(5.0 / 50.0)]


def test_rank_shares_know_that_lora_is_bounded_by_r() -> None:
    table = pd.DataFrame(
        {
            "run": ["l", "f", "l", "dora"],
            "rank": [8, 0, 8, 8],
            "update_rows": 64,
            "update_columns": 96,
            "update_norm": [1.0, 2.0, 0.0, 1.0],  # the third is a matrix without an adapter
            "update_entropy_rank": [4.0, 16.0, 0.0, 16.0],
            "update_entropy_rank_null": [5.0, 32.0, np.nan, 32.0],  # DoRA's lengths make it dense
        }
    )
    shares = observations.rank_shares(table)
    assert shares["bound_share"].tolist() == [0.5, 0.25, 0.25]
    assert shares["bounded"].tolist() == [True, False, False]
    assert shares["null_share"].tolist() == [0.8, 0.5, 0.5]


def test_a_sum_with_an_undefined_term_is_undefined() -> None:
    """What is left of a norm is not the model's, and nothing is not 0."""
    who = {"run": ["a", "a", "b"], "method": "full", "rank": 0, "seed": 1, "step": 4}
    sizes = pd.DataFrame({**who, "update_norm": [3.0, np.nan, 4.0], "base_norm": [1.0, 1.0, 8.0]})
    found = observations.update_sizes(sizes).set_index("run")["relative_update_norm"]
    assert np.isnan(found["a"])
    assert found["b"] == 0.5
    gradients = pd.DataFrame(
        {**who, "level": "global", "layer": -1, "group": "", "factor": "", "numel": 4}
        | {name: [np.nan, np.nan, 2.0] for name in ("l2_norm", "mean_abs", "zero_fraction")}
    ).drop_duplicates("run")
    norms = observations.gradient_statistics(gradients, "global").set_index("run")["l2_norm"]
    assert np.isnan(norms["a"])
    assert norms["b"] == 2


@pytest.mark.parametrize("with_sum", [False, True], ids=["factors", "factors and their sum"])
def test_gradients_of_factors_add_up_once(with_sum: bool) -> None:
    rows = [("A", 30, 3.0, 1.0, 1.0), ("B", 10, 4.0, 5.0, 0.0)]
    if with_sum:
        rows = [("", 40, 5.0, 2.0, 0.75), *rows]
    found = observations.gradient_statistics(gradients(rows), "global").iloc[0]
    assert (found["numel"], found["l2_norm"]) == (40, 5.0)
    assert (found["mean_abs"], found["zero_fraction"]) == (2.0, 0.75)
    assert found["rms"] == pytest.approx((25 / 40) ** 0.5)


def test_rows_that_are_one_a_layer() -> None:
    rows = [("mean", "all"), ("mean", "without_top"), ("token", "all")]
    drift = pd.DataFrame(rows, columns=["representation", "features"])
    assert observations.mean_states(drift).index.tolist() == [0]
    matrices = pd.DataFrame({"layer": [-1, 0, 1], "module": ["embed_tokens", "q_proj", "q_proj"]})
    assert observations.of_blocks(matrices)["layer"].tolist() == [0, 1]


@pytest.mark.parametrize(("counts", "nearest"), [([1, 10, 32], 10), ([1, 2], 2), ([16], 16), ([8, 12], 8)])
def test_nearest_count(counts: list[int], nearest: int) -> None:
    assert observations.nearest_count(pd.Series(counts)) == nearest


def test_intruder_shares_are_of_the_vectors_examined() -> None:
    shared = {"threshold": 0.5, "k": 4, "count_random": 3.0, "module": "q_proj"}
    rows = [
        {"run": "l-seed1", "seed": 1, "layer": 0, "side": "left", "count": 3.0},
        {"run": "l-seed1", "seed": 1, "layer": 0, "side": "right", "count": 1.0},
        {"run": "l-seed2", "seed": 2, "layer": 0, "side": "left", "count": 2.0},
        {"run": "l-seed2", "seed": 2, "layer": 0, "side": "right", "count": np.nan},  # not defined
        {"run": "l-seed2", "seed": 2, "layer": -1, "side": "left", "count": 4.0},  # an embedding
    ]
    found = observations.intruder_shares(pd.DataFrame([row | shared for row in rows]))
    # 6 intruders among 12 vectors of two models; 9 of 12 random directions
    assert found.to_dict("records") == [
        {"arm": "l", "threshold": 0.5, "k": 4, "count": 3.0, "share": 0.5, "share_random": 0.75}
    ]


def test_pairs_of_last_checkpoints_name_both_arms() -> None:
    rows = [("last", "global"), ("last", "layer"), ("consecutive", "global")]
    vectors = pd.DataFrame(rows, columns=["pairing", "level"]).assign(
        run="full-seed1", seed=1, other_run="lora-r8-seed2", other_seed=2
    )
    found = observations.last_pairs(vectors)
    assert found[["arm", "other_arm"]].to_numpy().tolist() == [["full", "lora-r8"]]


def test_contrasts_are_of_leading_metrics_and_general_text() -> None:
    rows = [("last", "t", "acc"), ("last", "t", "f1"), ("last", "general_text", "nll")]
    rows += [("last", "general_text", "perplexity"), ("step", "t", "acc")]
    rows += [("last", "piqa", "acc"), ("last", "retention", "mean_accuracy")]
    table = pd.DataFrame(rows, columns=["checkpoint", "task", "metric"])
    roles = {"t": "trained", "general_text": "text", "piqa": "retention", "retention": "retention"}
    found = observations.of_contrast(table.assign(role=table["task"].map(roles)))
    assert found.index.tolist() == [0, 2, 6]


def variants(rows: list[tuple[int, str, str, float, str, str, float]]) -> pd.DataFrame:
    names = ["step", "kind", "arm", "at", "task", "metric", "difference"]
    table = pd.DataFrame(rows, columns=names).assign(run="l-seed1", trained_value=3.0, higher_is_better=True)
    table["role"] = np.where(table["task"] == "general_text", "text", "trained")
    table["variant"] = table["arm"] + table["at"].astype(str)
    ends = {"difference_low": table["difference"] - 0.25, "difference_high": table["difference"] + 0.25}
    sizes = {"vectors": 1, "relative_edit_norm": 0.1, "relative_update_norm": 0.2}
    sizes |= {"top_k": 10, "threshold": 0.5, "first_only": 0}
    return table.assign(value=3.0 + table["difference"], **ends, **sizes)


def test_edits_put_text_beside_the_leading_metric_at_the_last_step() -> None:
    edit = ("intervention", "intruders", 0.0)
    table = variants(
        [
            (2, *edit, "t", "acc", 9.0),
            (4, *edit, "t", "acc", -1.0),
            (4, *edit, "t", "f1", -2.0),
            (4, *edit, "general_text", "nll", -0.5),
            (4, "interpolation", "interpolation", 0.5, "t", "acc", 7.0),
        ]
    )
    (row,) = observations.edit_outcomes(table).to_dict("records")
    assert (row["metric"], row["score"], row["score_low"], row["score_high"]) == ("acc", -1.0, -1.25, -0.75)
    assert (row["nll"], row["nll_low"], row["nll_high"]) == (-0.5, -0.75, -0.25)


def test_the_line_ends_at_the_step_itself() -> None:
    line = ("interpolation", "interpolation")
    table = variants([(4, *line, 0.5, "t", "acc", -1.0), (4, *line, 1.0, "t", "acc", 0.125)])
    found = observations.line_scores(table)[["at", "value", "low", "high"]].to_numpy().tolist()
    # at 1 the step's own value, whatever the scored copy of it gave
    assert found == [[0.5, 2.0, 1.75, 2.25], [1.0, 3.0, 3.0, 3.0]]


@pytest.mark.parametrize(
    ("counts", "total"), [([2.0, 1.0], 3.0), ([2.0, np.nan], np.nan), ([np.nan] * 2, np.nan)]
)
def test_a_sum_of_intruders_is_undefined_where_a_count_is(counts: list[float], total: float) -> None:
    table = spectra([(1.0, 2.0), (1.0, 2.0)]).assign(layer=0, tasks="topic", sigma1_ratio=0.1)
    names = [f"intruder{kind}_{side}" for kind in ("s", "_energy") for side in ("left", "right")]
    found = observations.intruder_totals(table.assign(**dict.fromkeys(names, counts)))
    np.testing.assert_array_equal(found[["intruders_left", "intruders_right"]].to_numpy(), [[total] * 2])


def test_the_parts_are_those_that_are_logged() -> None:
    assert (*observations.PARTS_OF_STEPS, *observations.BESIDE_STEPS) == PARTS


def test_times_of_runs() -> None:
    steps = pd.DataFrame({
        "run": ["a", "a", "a", "b", "old"], "method": "full", "rank": 0, "seed": 1,
        "split": ["train", "train", "validation", "train", "train"],
        "seconds": [2.0, 4.0, np.nan, 1.0, np.nan],
        "tokens_per_second": [10.0, 20.0, np.nan, 5.0, 1.0],
        "seconds_forward": [1.0, 2.0, np.nan, 0.25, np.nan],
        "seconds_save": [np.nan, 3.0, np.nan, np.nan, np.nan],
        "seconds_probe": [0.5, np.nan, np.nan, np.nan, np.nan],
    })  # fmt: skip
    found = observations.times_of_runs(steps).set_index("run")
    assert list(found.index) == ["a", "b"]
    assert found["seconds"].tolist() == [3.0, 1.0]
    assert found["tokens_per_second"].tolist() == [15.0, 5.0]
    assert found["share_forward"].tolist() == [0.5, 0.25]
    assert found["beside"].tolist() == [3.5, 0.0]
    assert found["steps"].tolist() == [2, 1]
    assert found["mfu"].isna().all()
