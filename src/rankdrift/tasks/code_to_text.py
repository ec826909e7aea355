"""Code to text: say in a sentence what a Python function does (CodeXGLUE, arXiv 2102.04664).

The tokens of the code are those without the docstring, which the column ``code`` still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import answered, texts
from rankdrift.tasks.kinds.generation import Generation

CUE = "\nIt does:"


def _example(row: Mapping[str, Any]) -> Example:
    code = " ".join(texts(row, "code_tokens"))
    return answered(f"Python: {code}{CUE}", " ".join(texts(row, "docstring_tokens")))


TASK = Task(
    name="code_to_text",
    version=1,
    kind=Generation(),
    metrics=("codexglue_bleu", "rouge_l"),
    columns=("code_tokens", "docstring_tokens"),
    example=_example,
    cue=CUE,
    source=Source("google/code_x_glue_ct_code_to_text", "python", "code_x_glue_ct_code_to_text_python"),
)
