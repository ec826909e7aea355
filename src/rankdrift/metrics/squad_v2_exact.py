"""SQuAD v2's exact match, 0 to 100: the share of answers equal to an accepted one, normalised as in squad_v2.

The mean over questions; a question without an answer is right where the text is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankdrift.metrics import Answered, Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics._squad import exact


def score(prediction: Answered, references: Sequence[str]) -> float:
    """Return 100 where one answer is right, else 0; without references the question has no answer."""
    return 100.0 * exact(prediction, references)


METRIC = Metric(
    name="squad_v2_exact", reads="answer", best=100.0, compute=mean_over_items(score), per_item=score
)
