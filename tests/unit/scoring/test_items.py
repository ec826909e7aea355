"""Items: one an input, prompts as in training for trained tasks and as long as the model reads for others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.models.tiny import tiny_tokenizer
from rankdrift.scoring import items as scoring_items
from rankdrift.scoring.items import task_items
from rankdrift.scoring.scored import scored_tasks
from rankdrift.spec import parse_spec
from rankdrift.tasks import Example
from rankdrift.tasks.kinds.generation import Generation

CONTEXT = 300


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()  # a token a byte, no BOS


def a_spec(limit=None, max_length=128, head="lm", tasks=("topic",), scoring=()):
    data = {"max_length": max_length, "tasks": list(tasks)}
    return parse_spec({"scoring": {"limit": limit, **dict(scoring)}, "data": data, "model": {"head": head}})


def items_of(spec, tokenizer, name="topic"):
    return task_items(spec, registry.load("task", name), "validation", tokenizer, CONTEXT)


def test_choices_and_prompts_are_the_tasks(tokenizer):
    found = items_of(a_spec(limit=7), tokenizer)
    assert found.indices == tuple(range(7))
    for item, example in zip(found.items, found.examples, strict=True):
        assert [tokenizer.decode(list(r.continuation)) for r in item.requests] == list(found.task.choices)
        assert tokenizer.decode(list(item.requests[0].context)) == example.prompt[-119:]
    assert len(found.requests) == 28


@pytest.mark.parametrize(("head", "reserved"), [("lm", len(" business")), ("classifier", 0)])
def test_long_prompts_lose_their_beginning(tokenizer, head, reserved):
    found = items_of(a_spec(limit=20, max_length=40, head=head), tokenizer)
    assert found.prompts_cut == sum(len(example.prompt) > 40 - reserved for example in found.examples) > 0
    for item, example in zip(found.items, found.examples, strict=True):
        prompt = item.requests[0].context if head == "lm" else item.requests[0].prompt
        assert len(prompt) == 40 - reserved
        assert example.prompt.endswith(tokenizer.decode(list(prompt)))


@pytest.mark.parametrize(("limits", "longest"), [({}, CONTEXT), ({"max_length": 60}, 60)])
def test_prompts_of_a_task_that_was_not_trained_on_are_as_long_as_the_model_reads(tokenizer, limits, longest):
    found = items_of(a_spec(limit=3, max_length=40, tasks=["describe"], scoring=limits), tokenizer)
    for item, example in zip(found.items, found.examples, strict=True):
        assert len(item.requests[0].context) == min(longest - len(" business"), len(example.prompt)) > 40


def test_rows_of_a_group_are_one_item_with_all_references(tokenizer, monkeypatch):
    rows = [("a", "one"), ("b", "two"), ("a", "three"), ("", "four"), ("", "five")]
    references = {"a": ("one", "three"), "b": ("two",), "": ()}
    examples = [Example(f"p{text}", text, None, references[group], group) for group, text in rows]
    monkeypatch.setattr(scoring_items, "load_examples", lambda *_: examples)
    task = replace(registry.load("task", "topic"), kind=Generation(), choices=())
    found = task_items(a_spec(), task, "test", tokenizer, CONTEXT)
    assert found.indices == (0, 1, 3, 4)
    assert found.examples[0].references == ("one", "three")
    assert len(task_items(a_spec(limit=2), task, "test", tokenizer, CONTEXT).items) == 2


@pytest.mark.parametrize(("most", "written"), [(None, 32), (5, 5), (500, 32)])
def test_answers_are_as_long_as_the_task_says_or_shorter(tokenizer, most, written):
    found = items_of(
        a_spec(limit=1, tasks=["describe"], scoring={"max_new_tokens": most}), tokenizer, "describe"
    )
    assert found.requests[0].max_new_tokens == written  # a quarter of 128, which is less than the task's 64


def test_no_room_for_a_prompt_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"data.max_length=9 leaves no room .* 'topic' beside 9 tokens"):
        items_of(a_spec(max_length=9), tokenizer)


def test_choices_a_tokenizer_cannot_tell_apart_are_an_error(tokenizer):
    task = replace(registry.load("task", "topic"), choices=(" yes", " yes"))
    with pytest.raises(UserError, match="cannot tell its choices apart"):
        task_items(a_spec(limit=1), task, "test", tokenizer, CONTEXT)


def test_a_classification_head_has_only_its_own_tasks(tokenizer):
    with pytest.raises(UserError, match=r"'describe' is generation: it needs model.head=lm, got classifier"):
        items_of(a_spec(head="classifier"), tokenizer, "describe")


@pytest.mark.parametrize(
    ("settings", "split", "scored"),
    [
        ({"data": {"tasks": ["topic"]}}, "test", ["topic"]),
        ({"data": {"tasks": ["sst2"]}}, "test", ["sst2", *["hellaswag", "arc_easy", "arc_challenge"]]),
        ({"data": {"tasks": ["sst2"]}}, "validation", ["sst2"]),
        ({"data": {"tasks": ["sst2"]}, "model": {"head": "classifier"}}, "test", ["sst2"]),
        ({"data": {"tasks": ["qqp"]}, "scoring": {"tasks": ["piqa", "glue"]}}, "validation", ["qqp"]),
        ({"data": {"tasks": []}, "scoring": {"tasks": ["piqa"]}}, "validation", ["piqa"]),
        ({"scoring": {"tasks": ["piqa", "glue"]}}, "test", ["piqa", "sst2", "mnli", "qqp", "mrpc", "rte"]),
    ],
)
def test_what_is_scored_is_what_was_trained_on_and_retention(settings, split, scored):
    names = [task.name for task in scored_tasks(parse_spec(settings), split).tasks]
    assert names[: len(scored)] == scored
    assert len(names) == (8 if "hellaswag" in scored else len(scored))


def test_of_a_folder_retention_is_what_it_holds(tmp_path):
    (tmp_path / "winogrande").mkdir()
    found = scored_tasks(parse_spec({"data": {"tasks": ["topic"], "root": str(tmp_path)}}), "test")
    assert [task.name for task in found.tasks] == ["topic", "winogrande"]
    assert "hellaswag" in found.left_out
