"""Generation: the model writes the answer, always the most likely token, and stops by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

from rankdrift.metrics import Answered
from rankdrift.tasks.kinds import (
    Answer,
    Codec,
    Completion,
    Continuation,
    Encoded,
    Guesses,
    Item,
    Kind,
    Likelihood,
    Outcome,
    supervised,
)

if TYPE_CHECKING:
    from rankdrift.tasks import Example, Task

ANSWER_SHARE = 4
"""A prompt leaves at least this part (a quarter) of the maximum length to its answer."""


@dataclass(frozen=True)
class Generation(Kind):
    """A text; what the task says of it is declared here."""

    stop: tuple[str, ...] = ("\n",)
    """Texts that end an answer; none of them is in a right one."""
    max_new_tokens: int = 64
    """Longest answer that is generated."""
    no_answer: str = ""
    """What is written for "there is no answer", where the task has such rows."""

    name: ClassVar[str] = "generation"
    ends: ClassVar[bool] = True

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        """A text; where there may be no answer, an answer as well."""
        return ("text", "answer") if self.no_answer else ("text",)

    def encode(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Encoded]:
        """Return rows of prompt, answer and EOS, which carries loss whatever else the same token is."""
        pairs = codec.joined([e.prompt for e in examples], [e.target for e in examples])
        room = self._room(task, codec)
        return [supervised(codec, task, pair, room, index) for index, pair in enumerate(pairs)]

    def items(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Item]:
        """Ask for a completion; where there may be no answer, for the likelihood of saying so as well."""
        room = self._room(task, codec)
        pairs = codec.joined([e.prompt for e in examples], [self.no_answer or e.target for e in examples])
        items = []
        for prompt, target in pairs:
            context = tuple(codec.cut(prompt, room, task.cue))
            asked = (Completion(context, min(self.max_new_tokens, codec.max_length - room), self.stop),)
            denied = (Continuation(context, tuple(target)),) if self.no_answer else ()
            items.append(Item(asked + denied, len(prompt) > room))
        return items

    def outcome(self, task: Task, example: Example, answers: Sequence[Answer]) -> Outcome:
        """Return the text, stripped; the text for "no answer" counts as the empty answer."""
        text = str(answers[0]).strip()
        predictions: dict[str, object] = {"text": text}
        columns: dict[str, object] = {"prediction": text, "references": list(example.references)}
        if self.no_answer:
            denied = answers[1]
            assert isinstance(denied, Likelihood)
            probability = math.exp(denied.log_likelihood)
            said = "" if text.lower().rstrip(".") == self.no_answer.strip().lower() else text
            predictions["answer"] = Answered(said, probability)
            columns["no_answer_probability"] = probability
        return Outcome(predictions, columns)

    def guesses(
        self, task: Task, examples: Sequence[Example], items: Sequence[Item], random: Random
    ) -> dict[str, Guesses]:
        """Return the most frequent answer ("no answer", if that is it), and each time another item's."""
        given = [example.references[0] if example.references else "" for example in examples]
        common = Counter(given).most_common(1)[0][0]
        others = [
            (number + random.randrange(1, max(len(given), 2))) % len(given) for number in range(len(given))
        ]
        return {
            "majority": [_guess(common) for _ in given],
            "random": [_guess(given[other]) for other in others],
        }

    def _room(self, task: Task, codec: Codec) -> int:
        return codec.room(-(-codec.max_length // ANSWER_SHARE), task.name)


def _guess(text: str) -> dict[str, object]:
    return {"text": text, "answer": Answered(text, float(not text))}


KIND = Generation()
