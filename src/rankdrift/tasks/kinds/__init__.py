"""Kinds of tasks: how a row becomes tokens to train on, what is asked of a model, and what its answer means.

To add one, write ``tasks/kinds/<name>.py`` that defines ``KIND``, an object of a :class:`Kind` of its own.
What a kind has to ask is said in requests (:class:`Continuation` and others), which ``scoring`` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    "Head",
    "Ids",
    "Item",
    "Kind",
    "Likelihood",
    "Outcome",
    "Request",
    "Tokens",
]


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
    answers: Mapping[str, Any]
    """What is right, likewise; one under the name "" serves all others."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the table of items."""

    def answer(self, reads: str) -> Any:
        """Return what a metric that reads so compares a prediction with."""
        return self.answers.get(reads, self.answers.get(""))


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
