"""Metrics that are the mean of a value per item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def mean_over_items(per_item: Callable[[Any, Any], float]) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """Return ``compute(predictions, answers)``: the mean of ``per_item`` over items.

    ``compute`` raises ValueError where there are no items, or not as many predictions as answers.
    """

    def compute(predictions: Sequence[Any], answers: Sequence[Any]) -> float:
        if not answers:
            raise ValueError("a metric over no items is undefined")
        pairs = zip(predictions, answers, strict=True)
        return sum(per_item(prediction, answer) for prediction, answer in pairs) / len(answers)

    return compute
