from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis import observations


def performance(values: list[tuple[str, int, str, str, float]]) -> pd.DataFrame:
    rows = pd.DataFrame(values, columns=["run", "step", "task", "metric", "value"])
    return rows.assign(method="full", rank=0, tasks="topic", seed=1, stderr=0.25)


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
            "run": ["l", "f"],
            "rank": [8, 0],
            "rows": [64, 64],
            "columns": [96, 96],
            "update_entropy_rank": [4.0, 16.0],
            "update_entropy_rank_null": [5.0, 32.0],
        }
    )
    shares = observations.rank_shares(table)
    assert shares["bound_share"].tolist() == [0.5, 0.25]
    assert shares["null_share"].tolist() == [0.8, 0.5]


@pytest.mark.parametrize("with_sum", [False, True], ids=["factors", "factors and their sum"])
def test_gradients_of_factors_add_up_once(with_sum: bool) -> None:
    rows = [("A", 30, 3.0, 1.0, 1.0), ("B", 10, 4.0, 5.0, 0.0)]
    if with_sum:
        rows = [("", 40, 5.0, 2.0, 0.75), *rows]
    found = observations.gradient_statistics(gradients(rows), "global").iloc[0]
    assert (found["numel"], found["l2_norm"]) == (40, 5.0)
    assert (found["mean_abs"], found["zero_fraction"]) == (2.0, 0.75)
    assert found["rms"] == pytest.approx((25 / 40) ** 0.5)
