"""Kinds of tasks: how a row becomes tokens to train on, what is asked of a model, and what its answer means.

To add one, write ``tasks/kinds/<name>.py`` that defines ``KIND``, an object of a :class:`Kind` of its own.
What a kind has to ask is said in requests (:class:`Continuation` and others), which ``scoring`` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rankdrift.errors import UserError
from rankdrift.tasks.kinds._codec import Codec, Head, Ids
from rankdrift.tasks.kinds._requests import (
    Answer,
    Classes,
    Completion,
    Continuation,
    Likelihood,
    Request,
    Tokens,
)

if TYPE_CHECKING:
    from rankdrift.tasks import Example, Task

__all__ = [
    "Answer",
    "Classes",
    "Codec",
    "Completion",
    "Continuation",
    "Encoded",
    "Guesses",
    "Head",
    "Ids",
    "Item",
    "Kind",
    "Likelihood",
    "Outcome",
    "Request",
    "Tokens",
]


Guesses = list[Mapping[str, Any]]
"""Predictions of each item, by what metrics read (``metrics.Reads``)."""


class Encoded(NamedTuple):
    """A row to train on, in tokens."""

    ids: Ids
    """The row; empty, or without a token that carries loss, where nothing is left to learn from."""
    carries: tuple[tuple[int, int], ...]
    """Spans (start, stop) of the tokens that carry loss, in order; none for a classification head."""
    number: int
    """Which of the examples it is of."""
    label: int | None = None
    """Class index; None where there is none."""
    prompt_cut: bool = False
    """Whether the prompt lost its beginning to the maximum length."""
    target_cut: bool = False
    """Whether the target lost its end to it."""


@dataclass(frozen=True)
class Item:
    """One input to score."""

    requests: tuple[Request, ...]
    cut: bool = False
    """Whether the prompt lost its beginning to the maximum length."""


@dataclass(frozen=True)
class Outcome:
    """What a model's answers to an item mean."""

    predictions: Mapping[str, Any]
    """What metrics are computed of, by what they read (``metrics.Reads``)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the table of items."""


class Kind:
    """A kind of task; a task has an object of it, with what the kind has to know of the task."""

    name: ClassVar[str]
    gives: ClassVar[tuple[str, ...]]
    """What metrics can be computed of (``metrics.Reads``)."""
    ends: ClassVar[bool] = False
    """Whether a target ends with EOS, so that the model learns to stop."""
    heads: ClassVar[tuple[Head, ...]] = ("lm",)
    """Heads of a model that can do it."""

    def encode(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Encoded]:
        """Return the rows to train on, at most ``codec.max_length`` tokens each."""
        raise NotImplementedError

    def items(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Item]:
        """Return what to ask of a model for each example."""
        raise NotImplementedError

    def outcome(self, task: Task, example: Example, answers: Sequence[Answer]) -> Outcome:
        """Return what a model's answers to the requests of an example's item mean."""
        raise NotImplementedError

    def guesses(
        self, task: Task, examples: Sequence[Example], items: Sequence[Item], random: Random
    ) -> dict[str, Guesses]:
        """Return what would be predicted without a model, by the name of the rule; {} where there is none.

        ``majority`` gives every item the same answer, the most frequent of these examples' right ones;
        ``random`` answers without looking.
        """
        return {}

    def require_head(self, task: Task, head: Head) -> None:
        """Raise UserError where a model's head cannot do the task."""
        if head not in self.heads:
            raise UserError(
                f"task '{task.name}' is {self.name}: it needs model.head={self.heads[0]}, got {head}"
            )


def supervised(
    codec: Codec, task: Task, pair: tuple[Ids, Ids], room: int, index: int, label: int | None = None
) -> Encoded:
    """Return a row of a prompt and a target, which carries the loss; a generated one together with EOS.

    A prompt of more than ``room`` tokens is cut, by a length that does not depend on the row's own target:
    what is scored is what was trained on. A target loses its end where there is no room for it.
    """
    prompt, target = pair
    end = [codec.eos] if task.kind.ends else []
    start = codec.cut(prompt, room, task.cue)
    whole = start + target + end if target else start
    ids = whole[: codec.max_length]
    carries = ((max(len(start), 1), len(ids)),)
    return Encoded(ids, carries, index, label, len(start) < len(prompt), len(ids) < len(whole))
