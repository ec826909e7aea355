"""F1 of one class, and its mean over classes (van Rijsbergen, Information Retrieval, 1979, ch. 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def f1_of_class(predictions: Sequence[int], labels: Sequence[int], index: int) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN) of a class, 0 to 1; NaN where it occurs nowhere (0/0)."""
    true_positives = sum(pair == (index, index) for pair in zip(predictions, labels, strict=True))
    named = predictions.count(index) + labels.count(index)
    return 2 * true_positives / named if named else math.nan


def classes_of(predictions: Sequence[int], labels: Sequence[int]) -> list[int]:
    """Return the class indices that occur, sorted; -1, a missing prediction, is none.

    Raises ValueError where there is no class.
    """
    classes = sorted({index for index in (*predictions, *labels) if index >= 0})
    if not classes:
        raise ValueError("F1 over no items is undefined")
    return classes


def macro_f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Return the unweighted mean of F1 over the classes that occur in predictions or labels, 0 to 1.

    A missing prediction (-1) is a false negative of its label and no class of its own.
    """
    classes = classes_of(predictions, labels)
    return sum(f1_of_class(predictions, labels, index) for index in classes) / len(classes)
