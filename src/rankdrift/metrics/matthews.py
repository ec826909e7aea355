"""Matthews correlation of predictions and labels, -1 to 1, for two classes or more, as GLUE scores CoLA.

A value of the whole set, not a mean over items. (Gorodkin, Computational Biology and Chemistry 28, 2004)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rankdrift.metrics import Metric


def matthews(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Return R_K = cov(p, l) / sqrt(cov(p, p) cov(l, l)) over one-hot classes.

    With n items of which c are right, and p_k and l_k predictions and labels of class k, cov(p, l) is
    c n - sum p_k l_k. 0 where all predictions, or all labels, are of one class, as scikit-learn has it.
    A missing prediction (-1) is a class of its own, never right. ValueError where there are no items.
    """
    if not labels:
        raise ValueError("Matthews correlation over no items is undefined")
    n = len(labels)
    right = sum(prediction == label for prediction, label in zip(predictions, labels, strict=True))
    predicted, actual = Counter(predictions), Counter(labels)
    covariance = right * n - sum(predicted[index] * actual[index] for index in actual)
    spread = math.prod(
        n * n - sum(count * count for count in counts.values()) for counts in (predicted, actual)
    )
    return covariance / math.sqrt(spread) if spread else 0.0


METRIC = Metric(name="matthews", reads="choice", best=1.0, compute=matthews)
