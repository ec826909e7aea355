"""MNLI, matched: does one sentence follow from another? (Williams et al. 2018, GLUE arXiv 1804.07461)."""

from __future__ import annotations

from rankdrift.tasks import Source, Task
from rankdrift.tasks._nli import CHOICES, COLUMNS, nli_example
from rankdrift.tasks.kinds import classification

TASK = Task(
    name="mnli",
    version=1,
    kind=classification.KIND,
    metrics=("accuracy", "f1_macro"),
    columns=COLUMNS,
    example=nli_example,
    choices=CHOICES,
    source=Source(
        "nyu-mll/glue", "mnli", "glue_mnli", {"train": "train", "test": "validation_matched"}, carved=0.05
    ),
)
