"""What a report begins with: who is best, by how much, and what would tell the rest apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankdrift import files
from rankdrift.analysis.arm_differences import Difference, compared, differences
from rankdrift.analysis.comparisons.comparisons import ANALYSIS as COMPARISONS
from rankdrift.analysis.measures._performance_answers import ANSWERS
from rankdrift.analysis.measures.training import ANALYSIS as TRAINING
from rankdrift.analysis.report.answers import answers
from rankdrift.analysis.report.study import read_study
from rankdrift.analysis.report.topics import ORDER
from rankdrift.analysis.sources.observations import last_checkpoints, scores_of
from rankdrift.analysis.sources.subjects import IDENTITY
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
RUNS = (("full", 0, 42), ("lora", 8, 42))
LEARNS, FORGETS = (answer.say for answer in ANSWERS)


@pytest.fixture
def performance(make_tables: Callable[..., Tables]) -> pd.DataFrame:
    """Accuracy .87 of both runs, .82 of LoRA here; full forgets .05 nats, LoRA .02."""
    table = make_tables(RUNS, [4, 8], 1)["performance_metrics"]
    at = (table["run"] == "lora-r8-seed42") & (table["metric"] == "accuracy")
    return table.assign(value=table["value"].mask(at, table["value"] - 0.05))


def contrast(low: float, high: float, p: float = math.nan, **more: Any) -> pd.DataFrame:
    """LoRA minus full, over items."""
    row = {"run": "lora-r8-seed42", "other_run": "full-seed42", "task": "topic", "metric": "accuracy"}
    row |= {"items": 400, "difference": (low + high) / 2, "low": low, "high": high, "mcnemar_p": p, **more}
    return pd.DataFrame([row])


def seeds(low: float, high: float, stdev: float) -> pd.DataFrame:
    """Full minus LoRA, over three seeds."""
    row = {"arm": "full", "other_arm": "lora-r8", "checkpoint": "last", "task": "topic", "metric": "accuracy"}
    row |= {"seeds": 3, "difference": (low + high) / 2, "low": low, "high": high, "stdev": stdev}
    return pd.DataFrame([row])


def test_the_arm_with_the_best_score_is_named_with_its_difference(performance: pd.DataFrame) -> None:
    said = LEARNS(performance, None, contrast(-0.08, -0.02))
    assert said == (
        "full learns most: accuracy on topic 0.870 (base 0.420); +0.0500 [0.0200, 0.0800] over 400 items "
        "against lora-r8."
    )


def test_what_is_not_told_apart_is_said_and_what_would_tell_it(performance: pd.DataFrame) -> None:
    said = str(LEARNS(performance, None, contrast(-0.11, 0.01)))
    assert "Not told apart from lora-r8: about" in said
    needed = 400 * (0.06 / 0.05 * (1.96 + 0.84) / 1.96) ** 2
    assert f"about {math.ceil(needed)} items would show a difference of 0.0500" in said


def test_seeds_count_before_items(performance: pd.DataFrame) -> None:
    said = str(LEARNS(performance, seeds(0.01, 0.09, 0.02), contrast(-0.5, 0.5)))
    assert "+0.0500 [0.0100, 0.0900] over 3 seeds against lora-r8." in said
    unsure = str(LEARNS(performance, seeds(-0.05, 0.15, 0.04), None))
    assert "Not told apart from lora-r8: about 8" in unsure or "about 7" in unsure


def test_an_exact_test_that_does_not_reject_shows_nothing(performance: pd.DataFrame) -> None:
    said = str(LEARNS(performance, None, contrast(-0.08, -0.001, p=0.09)))
    assert "Not told apart from lora-r8" in said


def test_seeds_that_are_needed_have_the_power_that_is_promised() -> None:
    """By the noncentral t distribution of SciPy."""
    found = Difference("other", 0.05, -0.05, 0.15, "3 seeds", 3, True, 0.04).needed
    powers = []
    for n in (found - 1, found):
        delta, critical = 0.05 / 0.04 * math.sqrt(n), stats.t.ppf(0.975, n - 1)
        powers.append(stats.nct.sf(critical, n - 1, delta) + stats.nct.cdf(-critical, n - 1, delta))
    assert powers[0] < 0.8 <= powers[1]


def test_without_contrasts_a_value_has_no_interval(performance: pd.DataFrame) -> None:
    said = str(LEARNS(performance, None, None))
    assert said.endswith(
        "+0.0500 against lora-r8. No interval against lora-r8: measure more seeds, or the same items."
    )


def test_who_forgets_least_is_named(performance: pd.DataFrame) -> None:
    rows = contrast(-0.05, -0.01).assign(task="general_text", metric="nll", items=48)
    said = FORGETS(performance, None, rows)
    assert said == (
        "lora-r8 forgets least: loss on general text +0.0200 nats a token; -0.0300 [-0.0500, "
        "-0.0100] over 48 items against full."
    )


def test_of_many_arms_the_nearest_and_those_not_told_apart_are_named() -> None:
    found = [
        Difference(f"arm{n}", 0.1 * n, 0.1 * n - 0.15, 0.1 * n + 0.15, "9 items", 9, False)
        for n in range(1, 8)
    ]
    text = compared(found)
    assert text.startswith(
        "; +0.100 [-0.0500, 0.250] over 9 items against arm1, the nearest. Not told apart from arm1:"
    )
    sure = compared([found[4], found[6]])
    assert sure.endswith("against arm5, the nearest, and told apart from all 2 others")


def test_a_single_arm_is_compared_with_the_base_alone(performance: pd.DataFrame) -> None:
    alone = performance[performance["run"] != "lora-r8-seed42"]
    assert LEARNS(alone, None, None) == "full was trained: accuracy on topic 0.870 (base 0.420)."


def test_differences_are_of_the_best_less_the_other(performance: pd.DataFrame) -> None:
    last = last_checkpoints(scores_of(performance, "topic", "accuracy"))
    (found,) = differences("lora-r8", last, seeds(0.01, 0.09, 0.02), None)
    assert (found.value, found.low, found.high) == pytest.approx((-0.05, -0.09, -0.01))


def matched(low: float, high: float) -> pd.DataFrame:
    row = {"arm": "full", "other_arm": "lora-r8", "matched": "task_loss", "position": 1.0, "level": 0.5}
    row |= {"seeds": 3, "forgetting": 0.05, "other_forgetting": 0.02, "difference": 0.03, "reason": ""}
    first = row | {"position": 0.5, "difference": 0.9}
    return pd.DataFrame([first | {"low": 0.8, "high": 1.0}, row | {"low": low, "high": high}])


def test_equal_learning_is_read_at_the_furthest_level() -> None:
    (answer,) = COMPARISONS.answers
    assert answer.say(matched(0.01, 0.05)) == (
        "Where both have learnt equally far lora-r8 forgets less, by 0.0300 [0.0100, 0.0500] nats a token "
        "(full against lora-r8); shown for 1 of 1 pair of arms."
    )
    assert answer.say(matched(-0.01, 0.07)) == (
        "Where both have learnt equally far no difference in forgetting is shown, among 1 pair of arms; the "
        "largest is +0.0300 nats a token (95 % interval [-0.0100, 0.0700])."
    )
    assert answer.say(matched(0.01, 0.05).assign(difference=np.nan)) is None


def test_the_quickest_arm_is_named(make_tables: Callable[..., Tables]) -> None:
    training = make_tables(RUNS, [4], 1)["training_metrics"]
    slow = training["method"] == "full"
    training = training.assign(
        seconds=training["seconds"].mask(slow, 4.0), memory_gib=training["memory_gib"].mask(slow, 8.0)
    )
    (answer,) = TRAINING.answers
    assert answer.say(training) == (
        "lora-r8 is the quickest to train: 2.00 s a step, 0.50 of what full takes; its ranks take 2.50 GiB "
        "at most, full's 8.00. Times belong to this machine."
    )
    assert answer.say(training[~slow]) is None


def test_a_study_is_answered_in_order_and_each_answer_has_its_rows(
    tmp_path: Path, make_tables: Callable[..., Tables]
) -> None:
    study = StudyLayout(tmp_path)
    for name, table in make_tables(RUNS, [4, 8], 2).items():
        parts = {} if set(IDENTITY) <= set(table) else {"study": {}}
        files.write_table(study.table(name), table, {"columns": {}, "parts": parts}, csv=False)
    found = answers(read_study(study))
    assert [answer.topic for answer in found] == [
        "Learning", "Forgetting", "Equal learning, equal update", "Time", "Deployment",
    ]  # fmt: skip
    assert {answer.topic for answer in found} <= set(ORDER)
    assert found[-1].text.startswith(
        "Served beside the base model, the adapter of lora-r8 makes a token take 1.40"
    )


def test_where_nobody_is_ahead_that_is_said(make_tables: Callable[..., Tables]) -> None:
    every = (*RUNS, ("lora", 16, 42))
    alike = make_tables(every, [4, 8], 1)["performance_metrics"]
    assert LEARNS(alike, None, None) == (
        "No arm learns more than another: all 3 have accuracy on topic 0.870 (base 0.420)."
    )
    one = (alike["run"] == "full-seed42") & (alike["metric"] == "accuracy")
    behind = alike.assign(value=alike["value"].mask(one, alike["value"] - 0.05))
    said = str(LEARNS(behind, None, contrast(0.02, 0.08).assign(run="lora-r16-seed42")))
    assert said.startswith("lora-r16, lora-r8 learn most, alike: accuracy on topic 0.870 (base 0.420)") or (
        said.startswith("lora-r8, lora-r16 learn most, alike: accuracy on topic 0.870 (base 0.420)")
    )
    assert "against full" in said
    assert "against lora" not in said
