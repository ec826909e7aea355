"""Text to code: write a Java method from its description and its class (CONCODE, arXiv 1808.09588).

The answers of the test split are not public.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import answered, text
from rankdrift.tasks.kinds.generation import Generation

CUE = "\nJava:"


def _example(row: Mapping[str, Any]) -> Example:
    return answered(f"Description: {text(row, 'nl')}{CUE}", text(row, "code"))


TASK = Task(
    name="text_to_code",
    version=1,
    kind=Generation(max_new_tokens=128),
    metrics=("exact_match", "concode_bleu"),
    columns=("nl", "code"),
    example=_example,
    cue=CUE,
    source=Source(
        "google/code_x_glue_tc_text_to_code",
        None,
        "code_x_glue_tc_text_to_code",
        {"train": "train", "test": "validation"},
        carved=0.05,
    ),
)
