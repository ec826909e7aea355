"""Multiple choice: every row has its own answers, or one answer behind texts of its own.

The second form is WinoGrande's partial evaluation: the sentence up to and with each option is a context, the
rest of the sentence is what is scored (arXiv 1806.02847).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from rankdrift.tasks.kinds import (
    Answer,
    Codec,
    Continuation,
    Encoded,
    Guesses,
    Ids,
    Item,
    Kind,
    Outcome,
    supervised,
)
from rankdrift.tasks.kinds._likelihoods import choice_guesses, choice_outcome

if TYPE_CHECKING:
    from rankdrift.tasks import Example, Task


class MultipleChoice(Kind):
    """One of a row's own ``choices``, or of its ``contexts``."""

    name: ClassVar[str] = "multiple_choice"
    gives: ClassVar[tuple[str, ...]] = ("choice", "normalised_choice")

    def encode(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Encoded]:
        """Return rows of the prompt and the right answer, the prompt with room for any answer of its row."""
        rows = []
        for index, (example, pairs) in enumerate(zip(examples, _joined(examples, codec), strict=True)):
            assert example.label is not None
            pair, room = pairs[example.label], _room(codec, task, pairs)
            rows.append(supervised(codec, task, pair, room, index, example.label))
        return rows

    def items(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Item]:
        """Ask for the likelihood of every choice, or of the target behind every context."""
        items = []
        for pairs in _joined(examples, codec):
            room = _room(codec, task, pairs)
            cut = [(codec.cut(prompt, room, task.cue), target) for prompt, target in pairs]
            asked = tuple(Continuation(tuple(prompt), tuple(target)) for prompt, target in cut)
            items.append(Item(asked, any(len(prompt) > room for prompt, _ in pairs)))
        return items

    def outcome(self, task: Task, example: Example, answers: Sequence[Answer]) -> Outcome:
        """Return the most likely choice."""
        choices = example.choices or [example.target] * len(example.contexts)
        return choice_outcome(example, answers, choices)

    def guesses(
        self, task: Task, examples: Sequence[Example], items: Sequence[Item], random: Random
    ) -> dict[str, Guesses]:
        """Return the most frequent choice, and any."""
        return choice_guesses(examples, [len(e.choices or e.contexts) for e in examples], random)


def _joined(examples: Sequence[Example], codec: Codec) -> list[list[tuple[Ids, Ids]]]:
    """Return the tokens of every example's prompts and answers, a pair a choice."""
    texts = [_pairs(example) for example in examples]
    flat = [pair for pairs in texts for pair in pairs]
    tokens = iter(codec.joined([prompt for prompt, _ in flat], [target for _, target in flat]))
    return [[next(tokens) for _ in pairs] for pairs in texts]


def _pairs(example: Example) -> list[tuple[str, str]]:
    if example.contexts:
        return [(context, example.target) for context in example.contexts]
    return [(example.prompt, choice) for choice in example.choices]


def _room(codec: Codec, task: Task, pairs: Sequence[tuple[Ids, Ids]]) -> int:
    return codec.room(max(len(target) for _, target in pairs), task.name)


KIND = MultipleChoice()
