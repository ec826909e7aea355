"""Classification: one of the task's labels, written by the LM head or chosen by a classification head.

Written labels are scored by their likelihood behind the prompt, all their tokens together and among each
other only: a model that would write something else still has a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from rankdrift.errors import UserError
from rankdrift.tasks.kinds import (
    Answer,
    Classes,
    Codec,
    Continuation,
    Encoded,
    Guesses,
    Head,
    Ids,
    Item,
    Kind,
    Outcome,
    supervised,
)
from rankdrift.tasks.kinds._likelihoods import choice_guesses, choice_outcome

if TYPE_CHECKING:
    from rankdrift.tasks import Example, Task


class Classification(Kind):
    """One label of a fixed set (``Task.choices``)."""

    name: ClassVar[str] = "classification"
    gives: ClassVar[tuple[str, ...]] = ("choice",)
    heads: ClassVar[tuple[Head, ...]] = ("lm", "classifier")

    def encode(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Encoded]:
        """Return rows of prompt and label; for a classification head of the prompt alone."""
        prompts, labels = [example.prompt for example in examples], [example.label for example in examples]
        if codec.head == "classifier":
            room = codec.room(0, task.name)
            found = [_closed(codec, ids, room) for ids in codec.plain(prompts)]
            return [
                Encoded(ids if len(ids) > codec.special else [], (), index, label, cut)
                for index, ((ids, cut), label) in enumerate(zip(found, labels, strict=True))
            ]
        pairs = codec.joined(prompts, [example.target for example in examples])
        _require_distinct(task, codec.plain(task.choices))
        room = codec.room(_longest(task, codec), task.name)
        rows = enumerate(zip(pairs, labels, strict=True))
        return [supervised(codec, task, pair, room, index, label) for index, (pair, label) in rows]

    def items(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Item]:
        """Ask for the likelihood of every label."""
        prompts = [example.prompt for example in examples]
        if codec.head == "classifier":
            room, count = codec.room(0, task.name), len(task.choices)
            closed = [_closed(codec, ids, room) for ids in codec.plain(prompts)]
            return [Item((Classes(tuple(ids), codec.first_class, count),), cut) for ids, cut in closed]
        room = codec.room(_longest(task, codec), task.name)
        every = [prompt for prompt in prompts for _ in task.choices]
        pairs = codec.joined(every, [*task.choices] * len(prompts))
        size = len(task.choices)
        items = []
        for first in range(0, len(pairs), size):
            of_item = pairs[first : first + size]
            _require_distinct(task, [label for _, label in of_item])
            requests = (Continuation(tuple(codec.cut(p, room, task.cue)), tuple(ids)) for p, ids in of_item)
            items.append(Item(tuple(requests), any(len(p) > room for p, _ in of_item)))
        return items

    def outcome(self, task: Task, example: Example, answers: Sequence[Answer]) -> Outcome:
        """Return the most likely label."""
        return choice_outcome(example, answers, task.choices)

    def guesses(
        self, task: Task, examples: Sequence[Example], items: Sequence[Item], random: Random
    ) -> dict[str, Guesses]:
        """Return the most frequent choice, and any."""
        return choice_guesses(examples, [len(task.choices)] * len(examples), random)


def _closed(codec: Codec, ids: Ids, room: int) -> tuple[Ids, bool]:
    """Return a text as a classification head takes it, and whether it was cut."""
    kept = ids[-(room - codec.special) :]
    return codec.before + kept + codec.behind, len(kept) < len(ids)


def _longest(task: Task, codec: Codec) -> int:
    return max(map(len, codec.plain(task.choices)))


def _require_distinct(task: Task, labels: Sequence[Ids]) -> None:
    distinct = {tuple(ids) for ids in labels}
    if len(distinct) < len(labels):
        named = ", ".join(f"{text!r}: {ids}" for text, ids in zip(task.choices, labels, strict=True))
        raise UserError(
            f"task '{task.name}': the tokenizer cannot tell its choices apart ({named}); "
            "use another model, or model.head=classifier"
        )


KIND = Classification()
