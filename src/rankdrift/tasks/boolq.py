"""BoolQ: a yes or no question about a passage (Clark et al. 2019, arXiv 1905.10044).

Asked as lm-evaluation-harness does (task version 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import classified, text
from rankdrift.tasks.kinds import classification

CHOICES = (" no", " yes")


def _example(row: Mapping[str, Any]) -> Example:
    question = f"{text(row, 'passage')}\nQuestion: {text(row, 'question')}?\nAnswer:"
    return classified(question, row, CHOICES)


TASK = Task(
    name="boolq",
    version=1,
    kind=classification.KIND,
    metrics=("accuracy",),
    columns=("passage", "question", "label"),
    example=_example,
    choices=CHOICES,
    source=Source("aps/super_glue", "boolq", "boolq", {"train": "train", "test": "validation"}, carved=0.05),
)
