"""E2E NLG: describe a restaurant from a list of its attributes (Novikova et al. 2017, arXiv 1706.09254).

Most meaning representations have several human references; they share a ``group``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Task
from rankdrift.tasks._fields import text


def _example(row: Mapping[str, Any]) -> Example:
    meaning, reference = text(row, "meaning_representation"), text(row, "human_reference")
    return Example(
        prompt=f"Restaurant: {meaning}\nDescription:",
        target=f" {reference}",
        references=(reference,),
        group=meaning,
    )


TASK = Task(
    name="e2e_nlg",
    version=1,
    kind="generation",
    metrics=("bleu", "rouge_l", "exact_match"),
    columns=("meaning_representation", "human_reference"),
    example=_example,
    hub=("tuetschek/e2e_nlg", None),
    folder="e2e_nlg",
)
