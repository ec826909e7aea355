"""All rows of an experiment, over its tasks."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.dataset import class_ranges, codec_of, load_rows, num_labels
from rankdrift.data.prepare import Preparation
from rankdrift.data.sources import load_examples
from rankdrift.data.token_table import TaskTables, TokenTable
from rankdrift.data.tokens import RowCounts
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec, Spec, parse_spec
from rankdrift.tasks.kinds import Codec, Continuation


def _spec(tasks: list[str], head: str = "lm", **data: object) -> Spec:
    return parse_spec({"model": {"head": head}, "data": {"tasks": tasks, **data}})


def test_tasks_follow_one_another(tokenizer: PreTrainedTokenizerBase) -> None:
    spec = _spec(["topic", "describe"], train_limit=5, validation_limit=3, max_length=400)
    for split, rows in (("train", 5), ("validation", 3)):
        loaded = load_rows(spec, split, tokenizer)
        found = [(row.task, row.index) for row in loaded]
        assert found == [(task, index) for task in spec.data.tasks for index in range(rows)]
        assert loaded.counts == {task: RowCounts(rows, 0, 0, 0) for task in spec.data.tasks}


def test_every_task_has_its_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_rows(_spec(["topic", "describe"], train_limit=4, max_length=20), "train", tokenizer)
    assert {task: counts.prompts_cut for task, counts in loaded.counts.items()} == {"topic": 4, "describe": 4}
    assert max(len(row.input_ids) for row in loaded) == 20


def test_what_is_trained_on_is_what_is_scored(tokenizer: PreTrainedTokenizerBase) -> None:
    """Real lengths: cut or not, an example's prompt is the same in a training row and in a scored item."""
    spec = _spec(["topic", "describe"], validation_limit=40, max_length=24)
    for table in load_rows(spec, "validation", tokenizer).tables:
        task = registry.load("task", table.task)
        examples = load_examples(task, "validation", spec.data)
        items = task.kind.items(task, examples, codec_of(spec, task, tokenizer))
        for row in table:
            prompt = tuple(row.input_ids[: row.prompt_length].tolist())
            for request in items[row.index].requests:
                assert (request.context if isinstance(request, Continuation) else request.prompt) == prompt
        assert 0 < table.counts.prompts_cut == sum(item.cut for item in items)


def test_classes_of_a_shared_and_of_a_task_s_own_head(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = load_rows(_spec(["topic"], "classifier", train_limit=8), "train", tokenizer)
    assert {row.label for row in rows} == {0, 1, 2, 3}
    task, codec = registry.load("task", "topic"), Codec(tokenizer, 128, "classifier", first_class=3)
    later = Preparation(tokenizer, DataSpec(train_limit=8)).table(task, "train", codec)
    assert [row.label for row in later] == [int(row.label or 0) + 3 for row in rows]


def test_the_digest_of_rows_knows_all_that_is_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = load_rows(_spec(["topic"], train_limit=2), "train", tokenizer)
    first = rows[0]
    earlier = first.carries_loss.copy()
    earlier[first.prompt_length - 1] = True
    others = [
        dataclasses.replace(first, **{name: value})
        for name, value in {
            "input_ids": first.input_ids + 1,
            "carries_loss": earlier,
            "label": (first.label or 0) + 1,
        }.items()
    ]
    tables = [TokenTable.of_rows("topic", [row, rows[1]]) for row in (first, *others)]
    tables.append(TokenTable.of_rows("describe", rows[:2]))
    digests = {TaskTables([table]).digest for table in tables}
    assert len(digests) == 5
    assert rows.digest in digests  # of the file as of the rows in memory


@pytest.mark.parametrize(
    ("tasks", "heads", "ranges"),
    [
        (["sst2", "mnli"], "per_task", {"sst2": range(2), "mnli": range(2, 5)}),
        (["sst2", "qqp"], "shared", {"sst2": range(2), "qqp": range(2)}),
        (["mnli"], "shared", {"mnli": range(3)}),
    ],
)
def test_a_heads_classes_are_each_tasks_own_or_shared(tasks, heads, ranges):
    spec = parse_spec({"model": {"head": "classifier", "heads": heads}, "data": {"tasks": tasks}})
    assert class_ranges(spec) == ranges
    assert num_labels(spec) == max(classes.stop for classes in ranges.values())


@pytest.mark.parametrize(
    ("tasks", "heads", "message"),
    [
        (["sst2", "mnli"], "shared", r"numbers differ \(sst2: 2, mnli: 3\); use model.heads=per_task"),
        (["sst2", "e2e_nlg"], "per_task", "'e2e_nlg' is generation: it needs model.head=lm"),
    ],
)
def test_classes_that_cannot_be_shared_are_refused(tasks, heads, message):
    spec = parse_spec({"model": {"head": "classifier", "heads": heads}, "data": {"tasks": tasks}})
    with pytest.raises(UserError, match=message):
        class_ranges(spec)
