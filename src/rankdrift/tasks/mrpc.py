"""MRPC: do two sentences say the same? (Dolan and Brockett 2005, GLUE arXiv 1804.07461); label 1 is yes.

The labels of its test split are public.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import classified, text
from rankdrift.tasks.kinds import classification

CHOICES = (" no", " yes")


def _example(row: Mapping[str, Any]) -> Example:
    first, second = text(row, "sentence1"), text(row, "sentence2")
    return classified(f"First: {first}\nSecond: {second}\nSame meaning:", row, CHOICES)


TASK = Task(
    name="mrpc",
    version=2,
    kind=classification.KIND,
    metrics=("accuracy", "f1"),
    columns=("sentence1", "sentence2", "label"),
    example=_example,
    choices=CHOICES,
    source=Source("nyu-mll/glue", "mrpc", "glue_mrpc"),
)
