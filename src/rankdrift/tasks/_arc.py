"""How questions of ARC are asked (Clark et al. 2018, arXiv 1803.05457), as lm-evaluation-harness does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example
from rankdrift.tasks._fields import chosen, named_label, text, texts

COLUMNS = ("question", "choices", "answerKey")


def arc_example(row: Mapping[str, Any]) -> Example:
    """Return the example of a row: a question, its choices' texts and labels, the label of the right one."""
    right = named_label(row, "answerKey", texts(row, "choices", "label"))
    return chosen(f"Question: {text(row, 'question')}\nAnswer:", texts(row, "choices", "text"), right)
