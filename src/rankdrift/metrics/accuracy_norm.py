"""Length-normalised accuracy, 0 to 1: the choice taken is that of most log-likelihood a byte.

What lm-evaluation-harness calls acc_norm. The mean over items.
"""

from __future__ import annotations

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics.accuracy import is_correct

METRIC = Metric(
    name="accuracy_norm",
    reads="normalised_choice",
    best=1.0,
    compute=mean_over_items(is_correct),
    per_item=is_correct,
)
