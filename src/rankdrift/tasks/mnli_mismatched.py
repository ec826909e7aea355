"""MNLI, mismatched: the same question on kinds of text that training lacks (GLUE, arXiv 1804.07461)."""

from __future__ import annotations

from rankdrift.tasks import Source, Task
from rankdrift.tasks._nli import CHOICES, COLUMNS, nli_example
from rankdrift.tasks.kinds import classification

TASK = Task(
    name="mnli_mismatched",
    version=1,
    kind=classification.KIND,
    metrics=("accuracy", "f1_macro"),
    columns=COLUMNS,
    example=nli_example,
    choices=CHOICES,
    source=Source("nyu-mll/glue", "mnli", "glue_mnli", {"test": "validation_mismatched"}),
)
