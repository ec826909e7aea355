"""Exact match: the share of texts equal to one of their references, 0 to 1.

Runs of white space count as one space and the ends are stripped; case and punctuation count (SQuAD's
metric of the same name drops them, and articles).
"""

from __future__ import annotations

from collections.abc import Sequence

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items


def matches(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 where the text equals a reference but for white space, else 0.0."""
    words = prediction.split()
    return float(any(words == reference.split() for reference in references))


METRIC = Metric(
    name="exact_match", reads="text", best=1.0, compute=mean_over_items(matches), per_item=matches
)
