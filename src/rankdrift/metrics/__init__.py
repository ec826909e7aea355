"""Metrics: predictions and answers become one number. One file a metric.

To add one, write ``metrics/<name>.py`` that defines ``METRIC``, a :class:`Metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A metric over a whole set of items."""

    name: str
    kind: Literal["classification", "generation"]
    best: float
    """The value of perfect predictions (a higher value is always better)."""
    compute: Callable[[Sequence[Any], Sequence[Any]], float]
    """(predictions, answers) -> value. Classification: class indices, -1 where the model gave none.
    Generation: predicted texts, and for each the tuple of its reference texts."""
    per_item: Callable[[Any, Any], float] | None = None
    """(prediction, answer) -> value, where the metric is the mean over items; gives the standard error."""
