"""PIQA: which of two ways reaches a goal (Bisk et al. 2019, arXiv 1911.11641).

Asked as lm-evaluation-harness does (task version 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import chosen, named_label, text
from rankdrift.tasks.kinds import multiple_choice


def _example(row: Mapping[str, Any]) -> Example:
    ways = (text(row, "sol1"), text(row, "sol2"))
    return chosen(f"Question: {text(row, 'goal')}\nAnswer:", ways, named_label(row, "label", (0, 1)))


TASK = Task(
    name="piqa",
    version=1,
    kind=multiple_choice.KIND,
    metrics=("accuracy_norm", "accuracy"),
    columns=("goal", "sol1", "sol2", "label"),
    example=_example,
    source=Source("baber/piqa", None, "piqa", {"train": "train", "test": "validation"}, carved=0.05),
)
