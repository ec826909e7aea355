"""Accuracy: the share of items whose predicted class is the label, 0 to 1."""

from __future__ import annotations

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items


def is_correct(prediction: int, label: int) -> float:
    """Return 1.0 where the predicted class index is the label, else 0.0; -1, no prediction, is wrong."""
    return float(prediction == label)


METRIC = Metric(
    name="accuracy", reads="choice", best=1.0, compute=mean_over_items(is_correct), per_item=is_correct
)
