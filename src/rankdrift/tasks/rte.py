"""RTE: does a text entail a claim? (Dagan et al. 2005 and later, GLUE arXiv 1804.07461).

GLUE's label 0 is ``entailment`` and 1 is ``not_entailment``, so the answers read yes, no in that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import classified, text
from rankdrift.tasks.kinds import classification

CHOICES = (" yes", " no")


def _example(row: Mapping[str, Any]) -> Example:
    premise, claim = text(row, "sentence1"), text(row, "sentence2")
    return classified(f"Text: {premise}\nClaim: {claim}\nThe text supports the claim:", row, CHOICES)


TASK = Task(
    name="rte",
    version=2,
    kind=classification.KIND,
    metrics=("accuracy",),
    columns=("sentence1", "sentence2", "label"),
    example=_example,
    choices=CHOICES,
    source=Source("nyu-mll/glue", "rte", "glue_rte", {"train": "train", "test": "validation"}, carved=0.1),
)
