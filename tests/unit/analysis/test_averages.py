"""Means over tasks: of published retention tasks, and of trained ones as shares of their best."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.sources.averages import Average, Part, averages

NAMES = ["task", "metric", "role", "value", "stderr", "n", "higher_is_better", "best"]
RETENTION = [
    ("hellaswag", "accuracy_norm", "retention", 0.9, 0.3, 10, True, 1.0),
    ("hellaswag", "accuracy", "retention", 0.3, 0.03, 10, True, 1.0),
    ("arc_challenge", "accuracy", "retention", 0.4, 0.06, 20, True, 1.0),
    ("winogrande", "accuracy", "retention", 0.5, 0.02, 30, True, 1.0),
]
SST2 = ("sst2", "accuracy", "trained", 0.8, 0.03, 100, True, 1.0)
E2E = ("e2e_nlg", "bleu", "trained", 60.0, 4.0, 50, True, 100.0)
SECOND = ("e2e_nlg", "rouge_l", "trained", 90.0, 1.0, 50, True, 100.0)
TEXT = ("wikitext", "word_perplexity", "trained", 20.0, 0.1, 9, False, 1.0)


def table(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=NAMES)


def test_retention_is_the_mean_of_the_three_published_accuracies() -> None:
    scores = table(*RETENTION)
    (average,) = averages(scores)
    row = average.row(scores)
    assert (row["task"], row["metric"], row["role"]) == ("retention", "mean_accuracy", "retention")
    assert row["value"] == pytest.approx(0.4)
    assert row["stderr"] == pytest.approx(0.07 / 3)  # sqrt(0.03² + 0.06² + 0.02²) = 0.07
    assert row["n"] == 60


@pytest.mark.parametrize("change", ["one is missing", "one was trained on"])
def test_of_other_tasks_there_is_no_retention_mean(change: str) -> None:
    scores = table(*RETENTION)
    scores = scores.iloc[:-1] if change == "one is missing" else scores.replace({"retention": "trained"})
    assert "mean_accuracy" not in [average.metric for average in averages(scores)]


def test_the_macro_average_takes_first_metrics_as_shares_of_their_best() -> None:
    without_scale = ("gain", "gain", "trained", 0.1, 0.1, 9, True, 0.0)
    scores = table(SST2, E2E, SECOND, TEXT, without_scale)
    (average,) = averages(scores)
    row = average.row(scores)
    assert (row["task"], row["metric"], row["role"]) == ("trained_tasks", "macro_average", "trained")
    assert row["value"] == pytest.approx((0.8 + 0.6) / 2)  # and no perplexity
    assert row["stderr"] == pytest.approx(0.05 / 2)  # sqrt(0.03² + 0.04²)


@pytest.mark.parametrize("rows", [(SST2,), (SST2, TEXT), ()])
def test_one_task_has_no_average(rows: tuple[tuple[object, ...], ...]) -> None:
    assert averages(table(*rows)) == []


def test_an_undefined_part_makes_it_undefined() -> None:
    scores = table(SST2, E2E)
    scores.loc[1, "value"] = scores.loc[0, "stderr"] = math.nan
    row = averages(scores)[0].row(scores)
    assert math.isnan(row["value"])  # type: ignore[arg-type]
    assert math.isnan(row["stderr"])  # type: ignore[arg-type]


def test_averages_of_a_table_that_has_them_are_the_same() -> None:
    scores = table(SST2, E2E, *RETENTION)
    found = averages(scores)
    again = pd.concat([scores, pd.DataFrame([average.row(scores) for average in found])])
    assert averages(again) == found


def test_items_of_all_tasks_weigh_as_their_tasks_do() -> None:
    average = Average("mean", "m", "trained", (Part("a", "x", 1.0), Part("b", "y", 100.0)))
    a = pd.DataFrame({"x": [1.0, 0.0, 1.0, 1.0], "prompt_digest": list("pqrs"), "prompt": "end"})
    b = pd.DataFrame({"y": [50.0, 100.0], "document": [7, 7]})
    items = average.items({"a": a, "b": b})
    assert items is not None
    assert items["m"].sum() / items["weight"].sum() == pytest.approx((0.75 + 0.75) / 2)
    assert items["weight"].sum() == pytest.approx(2)
    assert items["document"].tolist() == ["a/0", "a/1", "a/2", "a/3", "b/7", "b/7"]
    assert items["prompt"].tolist()[:4] == list("pqrs")
    assert items.index.is_unique
    assert average.items({"a": a}) is None
    assert average.items({"a": a, "b": b.drop(columns="y")}) is None
    assert np.isfinite(items["m"]).all()
