"""All rows of an experiment, over its tasks."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from rankdrift.data.dataset import load_rows
from rankdrift.errors import UserError
from rankdrift.spec import Spec, parse_spec


def _spec(tasks: list[str], head: str = "lm", **data: object) -> Spec:
    return parse_spec({"model": {"head": head}, "data": {"tasks": tasks, **data}})


def test_tasks_follow_one_another(tokenizer: PreTrainedTokenizerBase) -> None:
    spec = _spec(["topic", "describe"], train_limit=5, validation_limit=3, max_length=400)
    for split, rows in (("train", 5), ("validation", 3)):
        loaded = load_rows(spec, split, tokenizer)
        found = [(row.task, row.index) for row in loaded.rows]
        assert found == [(task, index) for task in spec.data.tasks for index in range(rows)]
        assert (loaded.dropped, loaded.truncated) == (0, 0)


def test_counts_are_summed_over_tasks(tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_rows(_spec(["topic", "describe"], train_limit=4, max_length=12), "train", tokenizer)
    assert loaded.truncated == 8
    assert max(len(row.input_ids) for row in loaded.rows) == 12


def test_classifier_serves_one_task(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = load_rows(_spec(["topic"], "classifier", train_limit=8), "train", tokenizer).rows
    assert {row.label for row in rows} == {0, 1, 2, 3}
    with pytest.raises(UserError, match=r"classes of one task, got data.tasks=\['topic', 'sst2'\]"):
        load_rows(_spec(["topic", "sst2"], "classifier"), "train", tokenizer)
