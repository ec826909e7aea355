"""Rows of tokens: which tokens carry loss, what is cut, what is dropped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenized import tokenize
from transformers import PreTrainedTokenizerBase

from rankdrift.data.tokens import RowCounts, losses
from rankdrift.errors import UserError
from rankdrift.tasks import Example, Task
from rankdrift.tasks.kinds import Codec, Head, classification, generation

MakeTokenizer = Callable[[str], PreTrainedTokenizerBase]
PROMPT = "The river rose in the night.\nTopic:"
CHOICE = " nature"
CHOICES = (" business", CHOICE)
SHARED: dict[str, Any] = {"version": 1, "metrics": (), "columns": (), "example": lambda row: Example("", "")}
CLASSIFY = Task(name="rivers", kind=classification.KIND, choices=CHOICES, **SHARED)
GENERATE = Task(name="trails", kind=generation.KIND, **SHARED)
LABELLED = Example(PROMPT, CHOICE, label=1)
WRITTEN = Example("name: Otter Way\nDescription:", " Otter Way runs for 9 km.", references=("x",), group="g")


def _only(
    example: Example, task: Task, tokenizer: PreTrainedTokenizerBase, length: int = 128, head: Head = "lm"
) -> tuple[list[int], list[int], int]:
    """Return prompt ids, target ids and the count of truncated rows of one example."""
    result = tokenize([example], task, Codec(tokenizer, length, head))
    (row,) = result.rows
    (counts,) = result.counts.values()
    assert (counts.rows, counts.dropped) == (1, 0)
    assert row.input_ids.dtype == np.int32
    assert row.target_tokens == len(row.input_ids) - row.prompt_length
    assert row.carries_loss.dtype == np.bool_
    ids = row.input_ids.tolist()
    return ids[: row.prompt_length], ids[row.prompt_length :], counts.prompts_cut + counts.targets_cut


@pytest.mark.parametrize(("adds", "start"), [("none", []), ("bos", ["<s>"]), ("bos_eos", ["<s>"])])
def test_prompt_has_the_bos_the_tokenizer_adds_and_no_eos(
    adds: str, start: list[str], make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(adds)
    prompt, target, truncated = _only(LABELLED, CLASSIFY, tokenizer)
    assert tokenizer.decode(prompt) == "".join(start) + PROMPT
    assert tokenizer.decode(target) == CHOICE
    assert truncated == 0


def test_generation_ends_with_eos_and_classification_does_not(tokenizer: PreTrainedTokenizerBase) -> None:
    _, written, _ = _only(WRITTEN, GENERATE, tokenizer)
    assert tokenizer.decode(written) == " Otter Way runs for 9 km.</s>"
    _, labelled, _ = _only(LABELLED, CLASSIFY, tokenizer)
    assert tokenizer.eos_token_id not in labelled


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT + " ", "x"])
def test_prompt_and_target_are_the_tokens_of_one_text(
    prompt: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """White space at the border goes with the target."""
    head, whole = (tokenizer(text).input_ids for text in (prompt.rstrip(), prompt + CHOICE))
    assert _only(Example(prompt, CHOICE, 1), CLASSIFY, tokenizer)[:2] == (head, whole[len(head) :])


def test_text_like_a_special_token_survives_in_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, _, _ = _only(Example("end </s>", CHOICE, 1), CLASSIFY, tokenizer)
    assert tokenizer.decode(prompt) == "<s>end </s>"


@pytest.mark.parametrize("adds", ["none", "bos"])
def test_long_prompt_is_cut_from_the_left_behind_its_bos(adds: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds)
    whole, target, _ = _only(LABELLED, CLASSIFY, tokenizer)
    start = 1 if adds == "bos" else 0
    room, longest = 5, len(tokenizer(" business", add_special_tokens=False).input_ids)
    prompt, kept, truncated = _only(LABELLED, CLASSIFY, tokenizer, start + room + longest)
    assert prompt == whole[:start] + whole[-room:]
    assert kept == target
    assert truncated == 1


def test_row_of_exactly_the_maximum_length_is_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    whole, target, _ = _only(WRITTEN, GENERATE, tokenizer)
    assert _only(WRITTEN, GENERATE, tokenizer, len(whole) + len(target)) == (whole, target, 0)
    assert _only(WRITTEN, GENERATE, tokenizer, len(whole) + len(target) - 1) == (whole, target[:-1], 1)
    labelled, label, _ = _only(LABELLED, CLASSIFY, tokenizer)
    length = len(labelled) + max(len(tokenizer(c, add_special_tokens=False).input_ids) for c in CHOICES)
    assert _only(LABELLED, CLASSIFY, tokenizer, length) == (labelled, label, 0)
    assert _only(LABELLED, CLASSIFY, tokenizer, length - 1) == (labelled[:1] + labelled[2:], label, 1)


def test_a_generated_answer_has_a_quarter_of_the_length_at_least(tokenizer: PreTrainedTokenizerBase) -> None:
    """Too long together, the prompt keeps three quarters and the target the rest."""
    whole, target, _ = _only(WRITTEN, GENERATE, tokenizer)
    prompt, kept, _ = _only(WRITTEN, GENERATE, tokenizer, 12)
    assert len(whole) > 9
    assert prompt == whole[:1] + whole[-8:]
    assert kept == target[:3]
    (counts,) = tokenize([WRITTEN], GENERATE, Codec(tokenizer, 12, "lm")).counts.values()
    assert (counts.prompts_cut, counts.targets_cut) == (1, 1)


def test_rows_without_a_target_are_dropped_and_told_of(tokenizer: PreTrainedTokenizerBase) -> None:
    empty = Example(PROMPT, "")
    result = tokenize([empty, WRITTEN, empty], GENERATE, Codec(tokenizer, 128, "lm"))
    assert result.counts == {"trails": RowCounts(rows=1, dropped=2, prompts_cut=0, targets_cut=0)}
    assert result.rows[0].index == 1
    assert losses(result.counts, "train", 128) == [
        "task 'trails', train: 2 of 3 rows dropped, no token to learn from at data.max_length=128"
    ]


@pytest.mark.parametrize(("cut", "told"), [(0, False), (10, False), (11, True)])
def test_cut_rows_are_told_of_above_one_in_a_hundred(cut: int, told: bool) -> None:
    lines = losses({"a": RowCounts(1000, 0, cut, 0), "b": RowCounts(1000, 0, 0, cut)}, "train", 64)
    assert len(lines) == 2 * told
    if told:
        cut = "11 of 1,000 prompts lose tokens (1.1%)"
        assert lines[0] == f"task 'a', train: {cut} at data.max_length=64"
        assert "task 'b', train: 11 of 1,000 targets lose their end" in lines[1]


def test_first_token_of_a_row_carries_no_loss(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("none")
    prompt, target, _ = _only(Example("", CHOICE + CHOICE, 1), CLASSIFY, tokenizer)
    assert len(prompt) == 1
    assert tokenizer.decode(prompt + target) == CHOICE + CHOICE


@pytest.mark.parametrize(
    ("example", "task", "length", "head"),
    [(Example(PROMPT, "", 0), CLASSIFY, 12, "lm"), (Example(PROMPT, "", 0), CLASSIFY, 99, "lm"),
     (Example("", CHOICE, 0), CLASSIFY, 99, "classifier")],
)  # fmt: skip
def test_nothing_left_is_an_error(
    example: Example, task: Task, length: int, head: Head, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=rf"'rivers': none of its 1 rows .* data.max_length={length}; raise"):
        tokenize([example], task, Codec(tokenizer, length, head))


def test_classifier_rows_are_prompts_with_their_label(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, target, _ = _only(LABELLED, CLASSIFY, tokenizer, head="classifier")
    assert tokenizer.decode(prompt) == f"<s>{PROMPT}"
    assert target == []
    (row,) = tokenize([LABELLED], CLASSIFY, Codec(tokenizer, 128, "classifier")).rows
    assert (row.label, row.task, row.index) == (1, "rivers", 0)


def test_classifier_prompt_is_cut_from_the_left(tokenizer: PreTrainedTokenizerBase) -> None:
    whole, _, _ = _only(LABELLED, CLASSIFY, tokenizer, head="classifier")
    prompt, _, truncated = _only(LABELLED, CLASSIFY, tokenizer, 6, "classifier")
    assert prompt == whole[:1] + whole[-5:]
    assert truncated == 1


def test_classifier_cannot_generate(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"task 'trails' is generation: it needs model.head=lm"):
        tokenize([WRITTEN], GENERATE, Codec(tokenizer, 128, "classifier"))


def test_generation_needs_an_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"has no EOS token.*set eos_token in its tokenizer_config.json"):
        tokenize([WRITTEN], GENERATE, Codec(tokenizer, 128, "lm"))
