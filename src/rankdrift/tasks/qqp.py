"""QQP: do two questions ask the same? (Quora Question Pairs, GLUE arXiv 1804.07461); label 1 is yes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import classified, text
from rankdrift.tasks.kinds import classification

CHOICES = (" no", " yes")


def _example(row: Mapping[str, Any]) -> Example:
    first, second = text(row, "question1", least=0), text(row, "question2", least=0)
    return classified(f"First question: {first}\nSecond question: {second}\nSame question:", row, CHOICES)


TASK = Task(
    name="qqp",
    version=1,
    kind=classification.KIND,
    metrics=("accuracy", "f1"),
    columns=("question1", "question2", "label"),
    example=_example,
    choices=CHOICES,
    source=Source("nyu-mll/glue", "qqp", "glue_qqp", {"train": "train", "test": "validation"}, carved=0.05),
)
