"""MRPC: do two sentences say the same? (Dolan and Brockett 2005, GLUE arXiv 1804.07461); label 1 is yes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Task
from rankdrift.tasks._fields import classified, text

CHOICES = (" no", " yes")


def _example(row: Mapping[str, Any]) -> Example:
    first, second = text(row, "sentence1"), text(row, "sentence2")
    return classified(f"First: {first}\nSecond: {second}\nSame meaning:", row, CHOICES)


TASK = Task(
    name="mrpc",
    version=1,
    kind="classification",
    metrics=("accuracy", "f1"),
    columns=("sentence1", "sentence2", "label"),
    example=_example,
    choices=CHOICES,
    hub=("nyu-mll/glue", "mrpc"),
    folder="glue_mrpc",
)
