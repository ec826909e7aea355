"""Chat: a conversation in the tokenizer's own template; the assistant's turns carry the loss.

The template is rendered turn by turn, so that the assistant's turns are found in any template; the tokens are
those of the whole text. A template may write BOS itself: none is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rankdrift.errors import UserError
from rankdrift.tasks.kinds import Answer, Codec, Completion, Encoded, Ids, Item, Kind, Outcome
from rankdrift.tasks.kinds.generation import ANSWER_SHARE

if TYPE_CHECKING:
    from rankdrift.tasks import Example, Task

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Chat(Kind):
    """The assistant's turns of a conversation (``Example.messages``); the last one is what is scored."""

    max_new_tokens: int = 128
    """Longest turn that is generated."""

    name: ClassVar[str] = "chat"
    gives: ClassVar[tuple[str, ...]] = ("text",)

    def encode(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Encoded]:
        """Return one row a conversation, cut at its end where it is too long."""
        rows = []
        for index, example in enumerate(examples):
            of = conversation(codec, example.messages)
            kept = of.ids[: codec.max_length]
            rows.append(Encoded(kept, _spans(of, len(kept)), index, None, False, len(kept) < len(of.ids)))
        return rows

    def items(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Item]:
        """Ask for the last turn, behind all that stands before it."""
        answer = -(-codec.max_length // ANSWER_SHARE)
        room = codec.room(answer, task.name)
        items = []
        for example in examples:
            of = conversation(codec, example.messages)
            prompt = of.prompts[-1]
            most, ends = min(self.max_new_tokens, answer), _end_of_turn(codec, of)
            asked = Completion(tuple(codec.cut(prompt, room)), most, ends=ends)
            items.append(Item((asked,), len(prompt) > room))
        return items

    def outcome(self, task: Task, example: Example, answers: Sequence[Answer]) -> Outcome:
        """Return the text that was written, stripped."""
        text = str(answers[0]).strip()
        columns = {"prediction": text, "references": list(example.references)}
        return Outcome({"text": text}, columns)


class Conversation(NamedTuple):
    """A conversation in tokens."""

    ids: Ids
    prompts: list[Ids]
    """What stands before each of the assistant's turns, as it is where nothing follows."""
    ends: list[int]
    """Where the turns end in ``ids``; they begin behind their prompts."""


def conversation(codec: Codec, messages: Sequence[Mapping[str, str]]) -> Conversation:
    """Return a conversation up to the assistant's last turn, tokenised as one text.

    Raises
    ------
    UserError
        If there is no template, it fails, or it changes what it wrote before when a turn is added.

    """
    texts: list[str] = []
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = _rendered(codec, messages[:number], prompt=True)
        through = _rendered(codec, messages[: number + 1], prompt=False)
        if not (before.startswith(texts[-1] if texts else "") and through.startswith(before)):
            raise UserError(
                f"the tokenizer's chat template writes turn {number + 1} of a conversation so that what "
                "stands before it changes; give a template that only adds to its text"
            )
        texts += [before, through]
    tokens = [_begun(codec, ids) for ids in codec.plain(texts)]
    return Conversation(tokens[-1] if tokens else [], tokens[::2], [len(ids) for ids in tokens[1::2]])


def _begun(codec: Codec, ids: Ids) -> Ids:
    """Return tokens that begin with BOS, where the tokenizer has one: the template may have written it."""
    return ids if ids[: len(codec.before)] == codec.before else codec.before + ids


def _rendered(codec: Codec, messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
    if not codec.tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {codec.tokenizer.name_or_path or 'the model'} has no chat template, which "
            "chat rows need: give chat_template in its tokenizer_config.json, or use a model that has one"
        )
    try:
        text: Any = codec.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is a program of its own and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the tokenizer's chat template fails on a conversation with the roles {roles} "
            f"({type(error).__name__}: {error}); correct the rows or the template"
        ) from None
    return str(text)


def _end_of_turn(codec: Codec, of: Conversation) -> tuple[int, ...]:
    """Return the token that the template ends the last turn with; it need not be the tokenizer's EOS."""
    special = {number for number, token in codec.tokenizer.added_tokens_decoder.items() if token.special}
    turn = of.ids[len(of.prompts[-1]) : of.ends[-1]]
    return tuple([token for token in turn if token in special][-1:])


def _spans(of: Conversation, length: int) -> tuple[tuple[int, int], ...]:
    """Return where the assistant's turns are, up to a length."""
    turns = [(max(len(prompt), 1), min(end, length)) for prompt, end in zip(of.prompts, of.ends, strict=True)]
    return tuple((first, last) for first, last in turns if first < last)


KIND = Chat()
