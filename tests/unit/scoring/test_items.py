"""Items: one an input, prompts cut on the left to leave room for the longest choice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.models.tiny import tiny_tokenizer
from rankdrift.scoring import items as scoring_items
from rankdrift.scoring.items import task_items
from rankdrift.spec import parse_spec
from rankdrift.tasks import Example


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()  # a token a byte, no BOS


def a_spec(limit=None, max_length=128, head="lm"):
    data = {"max_length": max_length}
    return parse_spec({"scoring": {"limit": limit}, "data": data, "model": {"head": head}})


def test_choices_and_prompts_are_the_tasks(tokenizer):
    task = registry.load("task", "topic")
    found = task_items(a_spec(limit=7), task, tokenizer)
    assert [tokenizer.decode(list(choice)) for choice in found.choices] == list(task.choices)
    assert [item.index for item in found.items] == list(range(7))
    assert tokenizer.decode(list(found.items[0].prompt)) == found.items[0].example.prompt[-119:]


@pytest.mark.parametrize(("head", "reserved"), [("lm", len(" business")), ("classifier", 0)])
def test_long_prompts_lose_their_beginning(tokenizer, head, reserved):
    found = task_items(a_spec(limit=20, max_length=40, head=head), registry.load("task", "topic"), tokenizer)
    for item in found.items:
        assert len(item.prompt) == 40 - reserved
        assert item.example.prompt.endswith(tokenizer.decode(list(item.prompt)))


def test_rows_of_a_group_are_one_item_with_all_references(tokenizer, monkeypatch):
    rows = [("a", "one"), ("b", "two"), ("a", "three"), ("", "four"), ("", "five")]
    references = {"a": ("one", "three"), "b": ("two",), "": ()}
    examples = [Example(f"p{text}", text, None, references[group], group) for group, text in rows]
    monkeypatch.setattr(scoring_items, "load_examples", lambda *_: examples)
    task = replace(registry.load("task", "topic"), kind="generation", choices=())
    found = task_items(a_spec(), task, tokenizer)
    assert [item.index for item in found.items] == [0, 1, 3, 4]
    assert found.items[0].example.references == ("one", "three")
    assert len(task_items(a_spec(limit=2), task, tokenizer).items) == 2


def test_no_room_for_a_prompt_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"data.max_length=9 leaves no room .* 'topic' beside 9 tokens"):
        task_items(a_spec(max_length=9), registry.load("task", "topic"), tokenizer)


def test_choices_a_tokenizer_cannot_tell_apart_are_an_error(tokenizer):
    task = replace(registry.load("task", "topic"), choices=(" yes", " yes"))
    with pytest.raises(UserError, match="cannot tell its choices apart"):
        task_items(a_spec(limit=1), task, tokenizer)
