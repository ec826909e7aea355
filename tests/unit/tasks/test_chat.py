"""Chats: BOS once, loss on the assistant's turns alone, the prompt of a turn as it is generated behind."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
from made_tokenizers import made_tokenizer

from rankdrift.errors import UserError
from rankdrift.tasks import Example, Task
from rankdrift.tasks.kinds import Codec, Completion, Encoded, Item
from rankdrift.tasks.kinds.chat import Chat

TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + TURNS
PIECES = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LAST_ONLY = TURNS.replace("{{ m['content'] | trim }}", "{% if loop.last %}{{ m['content'] }}{% endif %}")
THINKS = TURNS.replace("<|assistant|>\n{% endif %}", "<|assistant|>\nHm. {% endif %}")
FORBIDS = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"

USER, SAID = {"role": "user", "content": "Who swims?"}, {"role": "assistant", "content": " An otter runs. "}
AGAIN, ENDED = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the water."}
SYSTEM = {"role": "system", "content": "Be brief."}
TASK = Task("rivers", 1, Chat(max_new_tokens=9), ("rouge_l",), (), lambda row: Example("", ""))


def a_codec(template: str | None, form: str = "bos", length: int = 1024) -> Codec:
    tokenizer = copy.deepcopy(made_tokenizer(form))
    tokenizer.chat_template = template
    return Codec(tokenizer, length)


def chat(*messages: dict[str, str]) -> Example:
    return Example("", messages[-1]["content"], references=(messages[-1]["content"],), messages=messages)


def rows(codec: Codec, *examples: Example) -> list[Encoded]:
    return TASK.kind.encode(TASK, examples, codec)


def asked(codec: Codec, example: Example) -> tuple[Item, Completion]:
    (item,) = TASK.kind.items(TASK, [example], codec)
    (request,) = item.requests
    assert isinstance(request, Completion)
    return item, request


def learned(codec: Codec, row: Encoded) -> Sequence[str]:
    return [codec.tokenizer.decode(row.ids[first:last]) for first, last in row.carries]


@pytest.mark.parametrize("form", ["none", "bos", "bos_eos", "pad_is_eos"])
@pytest.mark.parametrize("template", [TURNS, WITH_BOS])
def test_the_assistants_turns_carry_loss_with_their_ends(form: str, template: str) -> None:
    codec = a_codec(template, form)
    (row,) = rows(codec, chat(SYSTEM, USER, SAID, AGAIN, ENDED))
    assert learned(codec, row) == ["An otter runs.</s>", "In the water.</s>"]
    text = codec.tokenizer.decode(row.ids).removeprefix("<s>")
    assert text == (
        "<|system|>\nBe brief.</s><|user|>\nWho swims?</s><|assistant|>\nAn otter runs.</s>"
        "<|user|>\nWhere?</s><|assistant|>\nIn the water.</s>"
    )


@pytest.mark.parametrize("form", ["none", "bos", "pieces"])
@pytest.mark.parametrize("template", [TURNS, WITH_BOS])
def test_bos_is_there_once_if_the_tokenizer_or_the_template_writes_it(form: str, template: str) -> None:
    codec = a_codec(template, form)
    (row,) = rows(codec, chat(USER, SAID))
    _, request = asked(codec, chat(USER, SAID))
    begins = form != "none" or template == WITH_BOS
    for ids in (row.ids, list(request.prompt)):
        assert ids.count(codec.tokenizer.bos_token_id) == begins
        assert (ids[0] == codec.tokenizer.bos_token_id) == begins


@pytest.mark.parametrize("form", ["none", "bos", "pieces"])
@pytest.mark.parametrize("template", [WITH_BOS, PIECES])
def test_tokens_are_those_of_transformers(form: str, template: str) -> None:
    codec, messages = a_codec(template, form), [USER, SAID, AGAIN, ENDED]
    (row,) = rows(codec, chat(*messages))
    assert row.ids == codec.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    _, request = asked(codec, chat(*messages))
    prompt = codec.tokenizer.apply_chat_template(
        messages[:3], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert list(request.prompt) == prompt
    (_, _), (first, last) = row.carries
    assert (row.ids[:first], last) == (prompt, len(row.ids))


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, (USER, SAID), "has no chat template"),
        (
            FORBIDS,
            (SYSTEM, USER, SAID),
            "fails on .* roles system, user .*no system turn.*correct the rows",
        ),
        ("{{ messages[5].content }", (USER, SAID), "chat template fails .*TemplateSyntaxError"),
        (THINKS, (USER, SAID), "writes turn 2 .* what stands before it changes"),
        (LAST_ONLY, (USER, SAID, AGAIN, ENDED), "writes turn [24] .* what stands before it changes"),
    ],
)
def test_a_template_that_will_not_do_is_told_of(
    template: str | None, messages: tuple[dict[str, str], ...], message: str
) -> None:
    codec = a_codec(template)
    for work in (TASK.kind.encode, TASK.kind.items):
        with pytest.raises(UserError, match=message):
            work(TASK, [chat(*messages)], codec)


def test_a_long_chat_is_trained_up_to_its_end_and_asked_from_its_last_part() -> None:
    whole = rows(a_codec(WITH_BOS), chat(USER, SAID, AGAIN, ENDED))[0]
    (first, second) = whole.carries
    codec = a_codec(WITH_BOS, length=second[0] + 2)
    (row,) = rows(codec, chat(USER, SAID, AGAIN, ENDED))
    assert (row.ids, row.target_cut) == (whole.ids[: second[0] + 2], True)
    assert row.carries == (first, (second[0], second[0] + 2))
    short = a_codec(WITH_BOS, length=first[0])
    (row,) = rows(short, chat(USER, SAID))
    assert (len(row.ids), row.carries) == (first[0], ())  # nothing is left to learn from
    item, request = asked(codec, chat(USER, SAID, AGAIN, ENDED))
    room = codec.max_length - -(-codec.max_length // 4)
    prompt = whole.ids[: second[0]]
    assert item.cut
    assert list(request.prompt) == prompt[:1] + prompt[-(room - 1) :]
    assert request.max_new_tokens == 9


@pytest.mark.parametrize(("end", "ends"), [("</s>", ["</s>"]), ("<pad>\n", ["<pad>"]), ("\n", [])])
def test_an_answer_ends_where_the_template_ends_a_turn(end: str, ends: list[str]) -> None:
    codec = a_codec(TURNS.replace("</s>", end))
    _, request = asked(codec, chat(USER, SAID))
    assert list(request.ends) == codec.tokenizer.convert_tokens_to_ids(ends)


def test_what_was_said_is_compared_without_the_space_around_it() -> None:
    outcome = TASK.kind.outcome(TASK, chat(USER, ENDED), [" In the water.\n"])
    assert outcome.predictions == {"text": "In the water."}
    assert outcome.columns["references"] == ["In the water."]
