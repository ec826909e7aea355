"""HellaSwag: which ending goes on best with a description (Zellers et al. 2019, arXiv 1905.07830).

Prompt and clean-up are those of lm-evaluation-harness (task version 1): brackets of the WikiHow part are
taken out, the second sentence of the context begins with a capital.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import chosen, named_label, text, texts
from rankdrift.tasks.kinds import multiple_choice


def _clean(written: str) -> str:
    written = written.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", written).replace("  ", " ")


def _context(row: Mapping[str, Any]) -> str:
    """Return activity and context; some copies have the context as one text alone."""
    if not row["ctx_a"]:
        return text(row, "ctx")
    return f"{row['activity_label']}: {row['ctx_a']} {str(row['ctx_b']).capitalize()}"


def _example(row: Mapping[str, Any]) -> Example:
    endings = [_clean(ending) for ending in texts(row, "endings")]
    return chosen(_clean(_context(row)), endings, named_label(row, "label", range(len(endings))))


TASK = Task(
    name="hellaswag",
    version=1,
    kind=multiple_choice.KIND,
    metrics=("accuracy_norm", "accuracy"),
    columns=("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"),
    example=_example,
    source=Source(
        "Rowan/hellaswag", None, "hellaswag", {"train": "train", "test": "validation"}, carved=0.05
    ),
)
