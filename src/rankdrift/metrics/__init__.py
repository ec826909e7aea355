"""Metrics: predictions and answers become one number. One file a metric.

To add one, write ``metrics/<name>.py`` that defines ``METRIC``, a :class:`Metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Reads = Literal["choice", "normalised_choice", "text", "answer", "text_likelihood"]
"""What a metric is computed of, for every item: the index of a choice (-1: none), by its likelihood or by its
likelihood a character; a text; a text that may be "no answer" (:class:`Answered`); how likely the model finds
a text (:class:`ScoredText`)."""


class Answered(NamedTuple):
    """An answer to a question that may have none."""

    text: str
    """Empty: the question has no answer."""
    no_answer_probability: float


class ScoredText(NamedTuple):
    """How likely a model finds a text."""

    log_likelihood: float
    """Nats, over all its tokens."""
    words: int
    bytes: int


@dataclass(frozen=True)
class Metric:
    """A metric over a whole set of items."""

    name: str
    reads: Reads
    best: float
    """The value of perfect predictions."""
    compute: Callable[[Sequence[Any], Sequence[Any]], float]
    """(predictions, answers) -> value. Answers are class indices, or for texts tuples of references, of which
    any is right (none: the question has no answer)."""
    per_item: Callable[[Any, Any], float] | None = None
    """(prediction, answer) -> value, where the metric is the mean over items; gives the standard error."""
    parts: Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]] | None = None
    """(predictions, answers) -> further values of the same kind, by name: of some items only, say."""
    higher_is_better: bool = True
