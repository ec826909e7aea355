"""F1, 0 to 1: of class 1 where there are two classes (MRPC, QQP), else the unweighted mean over classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric


def f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN): binary for classes {0, 1}, else macro over the classes that occur.

    Two classes are told from more by the largest class index that occurs in predictions or labels. A missing
    prediction (-1) is a false negative of its label and no class of its own. NaN where class 1 of a
    binary task occurs nowhere: its F1 is 0/0. (van Rijsbergen, Information Retrieval, 1979, ch. 7)
    """
    pairs = list(zip(predictions, labels, strict=True))
    classes = sorted({index for pair in pairs for index in pair if index >= 0})
    if not classes:
        raise ValueError("F1 over no items is undefined")
    if classes[-1] <= 1:
        return _f1_of_class(pairs, 1)
    return sum(_f1_of_class(pairs, index) for index in classes) / len(classes)


def _f1_of_class(pairs: Sequence[tuple[int, int]], index: int) -> float:
    true_positives = pairs.count((index, index))
    predicted = sum(prediction == index for prediction, _ in pairs)
    actual = sum(label == index for _, label in pairs)
    return 2 * true_positives / (predicted + actual) if predicted + actual else math.nan


METRIC = Metric(name="f1", reads="choice", best=1.0, compute=f1)
