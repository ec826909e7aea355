"""F1, 0 to 1: of class 1 where there are two classes (MRPC, QQP), else the unweighted mean over classes.

A value of the whole set, not a mean over items.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankdrift.metrics import Metric
from rankdrift.metrics._f1 import classes_of, f1_of_class, macro_f1


def f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Return F1: binary for classes {0, 1}, else macro over the classes that occur.

    Two classes are told from more by the largest class index that occurs in predictions or labels. A missing
    prediction (-1) is a false negative of its label and no class of its own. NaN where class 1 of a
    binary task occurs nowhere: its F1 is 0/0.
    """
    if classes_of(predictions, labels)[-1] <= 1:
        return f1_of_class(predictions, labels, 1)
    return macro_f1(predictions, labels)


METRIC = Metric(name="f1", reads="choice", best=1.0, compute=f1)
