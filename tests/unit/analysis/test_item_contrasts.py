"""Models compared item by item: files as the scorer writes them, counts by hand, items that do not pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.comparisons.item_contrasts import ANALYSIS, TABLE, compute_all
from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.statistics.bootstrap import paired_bootstrap
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.layout import RunLayout

RUNS = [("full", 0, 1), ("lora", 4, 1), ("lora", 4, 2)]
N = 40


class Study:
    """A study's folder with tables and per-item files that a test may change."""

    def __init__(self, root: Path, performance: pd.DataFrame) -> None:
        self.root, self.performance = root, performance
        self.names = list(performance["run"].unique())
        self.correct: dict[str, np.ndarray] = {}
        for number, run in enumerate(self.names):
            self.correct[run] = np.arange(N) % (number + 2) > 0
            prompts = [f"p{i}" for i in range(N)]
            self.write(run, "topic", accuracy=self.correct[run].astype(float), prompt=prompts)
            generator = np.random.default_rng(number)
            tokens = np.arange(N) + 20
            self.write(run, "general_text", tokens=tokens, nll=tokens * (3 + generator.random(N)))

    def file(self, run: str, task: str) -> Path:
        return RunLayout(self.root / run).score_items(0 if run == "base" else 12, task)

    def write(self, run: str, task: str, **columns: object) -> None:
        path = self.file(run, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"index": np.arange(N), **columns}).to_parquet(path)

    def compute(self) -> pd.DataFrame:
        self.performance.to_parquet(self.root / "performance_metrics.parquet")
        base = self.root / "model"
        subjects = [base_subject(base, self.root / "base")]
        subjects += [
            Subject(run, "full", 0, ("topic",), 1, step, base, base, self.root / run)
            for run in self.names[1:]
            for step in (6, 12)
        ]
        found = compute_all(subjects, Params(cache=self.root), self.root)
        return found.get(TABLE, pd.DataFrame())


@pytest.fixture
def study(make_tables: Callable[..., dict[str, pd.DataFrame]], tmp_path: Path) -> Study:
    return Study(tmp_path, make_tables(RUNS, [6, 12], 1)["performance_metrics"])


def pick(table: pd.DataFrame, run: str, other: str, task: str) -> pd.Series:
    rows = table[(table["run"] == run) & (table["other_run"] == other) & (table["task"] == task)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_contrasts_are_with_the_base_and_between_arms_of_one_seed(study: Study) -> None:
    table = study.compute()
    pairs = set(zip(table["contrast"], table["run"], table["other_run"], strict=True))
    assert pairs == {
        ("base", "full-seed1", "base"),
        ("base", "lora-r4-seed1", "base"),
        ("base", "lora-r4-seed2", "base"),
        ("arms", "full-seed1", "lora-r4-seed1"),
    }
    assert set(table["metric"]) == {"accuracy", "nll"}  # perplexity is no mean over items
    assert list(table.columns) == list(ANALYSIS.columns[TABLE])
    assert (table["step"] == 12).all()


def test_right_and_wrong_are_counted(study: Study) -> None:
    row = pick(study.compute(), "full-seed1", "lora-r4-seed1", "topic")
    full, lora = study.correct["full-seed1"], study.correct["lora-r4-seed1"]
    assert row["difference"] == pytest.approx(full.mean() - lora.mean())
    assert (row["gained"], row["lost"]) == (np.sum(full & ~lora), np.sum(~full & lora))
    assert row["low"] < row["difference"] < row["high"]
    assert 0 < row["mcnemar_p"] <= 1
    assert (row["items"], row["resampled"], row["reason"]) == (N, N, "")


def test_text_is_compared_per_token(study: Study) -> None:
    row = pick(study.compute(), "lora-r4-seed1", "base", "general_text")
    one, base = (pd.read_parquet(study.file(run, "general_text")) for run in ("lora-r4-seed1", "base"))
    tokens = one["tokens"].sum()
    assert row["difference"] == pytest.approx(one["nll"].sum() / tokens - base["nll"].sum() / tokens)
    expected = paired_bootstrap(base["nll"], one["nll"], weights=one["tokens"])
    assert (row["low"], row["high"]) == (expected.low, expected.high)
    assert np.isnan(row["mcnemar_p"])


def test_text_that_nothing_changed_is_not_answered_right_or_wrong(study: Study) -> None:
    """KL from the base is 0 in every window of a model that is the base: zeros, but no wrong answers."""
    for run in ("full-seed1", "lora-r4-seed1"):
        study.write(run, "general_text", tokens=np.arange(N) + 20, kl_from_base=np.zeros(N))
    row = pick(study.compute(), "full-seed1", "lora-r4-seed1", "general_text")
    assert (row["metric"], row["difference"]) == ("kl_from_base", 0)
    assert row[["gained", "lost", "mcnemar_p"]].isna().all()
    assert "nothing varies" in row["reason"]


def test_items_are_paired_by_index_not_by_place(study: Study) -> None:
    wanted = pick(study.compute(), "full-seed1", "base", "topic")
    path = study.file("full-seed1", "topic")
    pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path)
    got = pick(study.compute(), "full-seed1", "base", "topic")
    assert got[["low", "gained"]].tolist() == wanted[["low", "gained"]].tolist()


def test_documents_are_drawn_where_items_name_theirs(study: Study) -> None:
    for run in study.names:
        path = study.file(run, "topic")
        pd.read_parquet(path).assign(document=np.arange(N) // 2).to_parquet(path)
    row = pick(study.compute(), "full-seed1", "base", "topic")
    assert (row["items"], row["resampled"]) == (N, N // 2)


def test_a_prompt_is_compared_by_its_digest_where_there_is_one(study: Study) -> None:
    """Two prompts may end alike: only their end is kept as text."""
    for run in study.names:
        path = study.file(run, "topic")
        digests = [f"{run if run == 'full-seed1' else ''}{i}" for i in range(N)]
        pd.read_parquet(path).assign(prompt_digest=digests).to_parquet(path)
    table = study.compute()
    assert "scored on different items" in pick(table, "full-seed1", "base", "topic")["reason"]
    assert pick(table, "lora-r4-seed1", "base", "topic")["reason"] == ""


def test_means_over_tasks_of_which_nothing_is_right_have_no_test_of_right_and_wrong(study: Study) -> None:
    rows = study.performance[study.performance["task"] == "topic"]
    mean = rows.assign(task="trained_tasks", metric="macro_average")
    study.performance = pd.concat([study.performance, rows.assign(task="second"), mean])
    for run in study.names:
        for task in ("topic", "second"):
            study.write(run, task, accuracy=np.zeros(N))
    row = pick(study.compute(), "full-seed1", "base", "trained_tasks")
    assert row[["gained", "lost", "mcnemar_p"]].isna().all()
    assert "nothing varies" in row["reason"]


def test_means_over_tasks_are_compared_over_the_items_of_all(study: Study) -> None:
    """Two trained tasks: topic's accuracy, and a second one's score of 100, with other items."""
    generator = np.random.default_rng(3)
    rows = study.performance[study.performance["task"] == "topic"]
    second = rows.assign(task="second", metric="bleu", best=100.0)
    mean = rows.assign(task="trained_tasks", metric="macro_average")
    study.performance = pd.concat([study.performance, second, mean])
    scores = {run: 100 * generator.random(N) for run in study.names}
    for run in study.names:
        study.write(run, "second", bleu=scores[run])
    row = pick(study.compute(), "full-seed1", "base", "trained_tasks")
    changes = [np.mean(study.correct["full-seed1"].astype(float) - study.correct["base"])]
    changes.append(np.mean(scores["full-seed1"] - scores["base"]) / 100)
    assert row["difference"] == pytest.approx(np.mean(changes))
    assert (row["metric"], row["items"], row["resampled"], row["reason"]) == (
        "macro_average",
        2 * N,
        2 * N,
        "",
    )
    # tasks are independent: the interval is about 1.96 sqrt(sum of squared errors) / 2 to either side
    deviations = [study.correct["full-seed1"].astype(float) - study.correct["base"]]
    deviations.append((scores["full-seed1"] - scores["base"]) / 100)
    error = np.sqrt(sum(np.var(values, ddof=1) / N for values in deviations)) / 2
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert np.isnan(row["mcnemar_p"])


@pytest.mark.parametrize("change", ["other prompts", "fewer items"])
def test_different_items_are_not_compared(study: Study, change: str) -> None:
    path = study.file("full-seed1", "topic")
    items = pd.read_parquet(path)
    items = items.assign(prompt="another") if change == "other prompts" else items.head(30)
    items.to_parquet(path)
    row = pick(study.compute(), "full-seed1", "base", "topic")
    assert "scored on different items" in row["reason"]
    assert row[["difference", "low", "high", "gained", "mcnemar_p"]].isna().all()
    assert row["items"] == (N if change == "other prompts" else 30)


def test_models_that_answer_alike_have_no_interval_and_say_so(study: Study) -> None:
    study.write("full-seed1", "topic", accuracy=study.correct["base"].astype(float))
    row = pick(study.compute(), "full-seed1", "base", "topic")
    assert (row["difference"], row["mcnemar_p"]) == (0, 1)
    assert "nothing varies" in row["reason"]


def test_a_run_without_items_has_no_rows(study: Study) -> None:
    study.file("full-seed1", "topic").unlink()
    table = study.compute()
    assert table[(table["run"] == "full-seed1") & (table["task"] == "topic")].empty
    assert len(table[table["run"] == "full-seed1"])


def test_nothing_to_compare_is_no_error(study: Study, tmp_path: Path) -> None:
    assert compute_all([], Params(cache=tmp_path), tmp_path) == {}
    study.performance = study.performance[study.performance["run"] == "base"]
    assert study.compute().empty
