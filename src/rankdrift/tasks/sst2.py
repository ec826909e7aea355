"""SST-2: is a sentence of a film review positive or negative? (Socher et al. 2013, GLUE arXiv 1804.07461)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Task
from rankdrift.tasks._fields import classified, text

CHOICES = (" negative", " positive")


def _example(row: Mapping[str, Any]) -> Example:
    return classified(f"Review: {text(row, 'sentence')}\nSentiment:", row, CHOICES)


TASK = Task(
    name="sst2",
    version=1,
    kind="classification",
    metrics=("accuracy", "f1"),
    columns=("sentence", "label"),
    example=_example,
    choices=CHOICES,
    hub=("nyu-mll/glue", "sst2"),
    folder="glue_sst2",
)
