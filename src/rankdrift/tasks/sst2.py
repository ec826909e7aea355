"""SST-2: is a sentence of a film review positive or negative? (Socher et al. 2013, GLUE arXiv 1804.07461)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import classified, text
from rankdrift.tasks.kinds import classification

CHOICES = (" negative", " positive")


def _example(row: Mapping[str, Any]) -> Example:
    return classified(f"Review: {text(row, 'sentence')}\nSentiment:", row, CHOICES)


TASK = Task(
    name="sst2",
    version=2,
    kind=classification.KIND,
    metrics=("accuracy", "f1"),
    columns=("sentence", "label"),
    example=_example,
    choices=CHOICES,
    source=Source("nyu-mll/glue", "sst2", "glue_sst2", {"train": "train", "test": "validation"}, carved=0.05),
)
