"""What a kind of task asks of a model, in tokens, and what it is told.

Requests know nothing of batches, devices or ranks: ``scoring`` answers any number of them together, in any
order, and an answer does not depend on which others are asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """How likely is a text behind another? The answer is a :class:`Likelihood`."""

    context: Tokens
    """At least one token."""
    continuation: Tokens
    """At least one token."""


class Likelihood(NamedTuple):
    """log p(continuation | context), in nats, summed over the continuation's tokens."""

    log_likelihood: float
    greedy: bool
    """Whether every token is the most likely one where it stands."""


@dataclass(frozen=True)
class Completion:
    """What does the model write, always taking the most likely token? The answer is a text (str)."""

    prompt: Tokens
    """At least one token."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts before the first of which the answer ends, besides the tokenizer's EOS."""
    ends: Tokens = ()
    """Tokens that end it as well, and are no part of it."""


@dataclass(frozen=True)
class Classes:
    """How likely is each class, by a classification head? The answer is a tuple of log-probabilities."""

    prompt: Tokens
    first: int = 0
    """The task's first class among those of the head."""
    count: int = 0
    """How many classes the task has; they alone share the probability."""


Request = Continuation | Completion | Classes
Answer = Likelihood | str | tuple[float, ...]
