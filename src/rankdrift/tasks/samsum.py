"""SAMSum: summarise a chat between friends (Gliwa et al. 2019, arXiv 1911.12237)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import answered, text
from rankdrift.tasks.kinds.generation import Generation

CUE = "\nSummary:"


def _example(row: Mapping[str, Any]) -> Example:
    return answered(f"Chat:\n{text(row, 'dialogue', least=0)}{CUE}", text(row, "summary"))


TASK = Task(
    name="samsum",
    version=1,
    kind=Generation(max_new_tokens=96),
    metrics=("rouge1", "rouge2", "rouge_l"),
    columns=("dialogue", "summary"),
    example=_example,
    cue=CUE,
    source=Source("knkarthick/samsum", None, "samsum"),
)
