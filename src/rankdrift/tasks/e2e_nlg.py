"""E2E NLG: describe a restaurant from a list of its attributes (Novikova et al. 2017, arXiv 1706.09254).

Most meaning representations have several human references; they share a ``group``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import answered, text
from rankdrift.tasks.kinds.generation import Generation

CUE = "\nDescription:"


def _example(row: Mapping[str, Any]) -> Example:
    meaning, reference = text(row, "meaning_representation"), text(row, "human_reference")
    return answered(f"Restaurant: {meaning}{CUE}", reference, group=meaning)


TASK = Task(
    name="e2e_nlg",
    version=2,
    kind=Generation(max_new_tokens=96),
    metrics=("bleu", "rouge_l", "exact_match"),
    columns=("meaning_representation", "human_reference"),
    example=_example,
    cue=CUE,
    source=Source("tuetschek/e2e_nlg", None, "e2e_nlg"),
)
