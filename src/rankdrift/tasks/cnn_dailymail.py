"""CNN/DailyMail: the highlights of a news article, one sentence a line (See et al. 2017, arXiv 1704.04368).

A long article keeps its beginning, where the news is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import answered, text
from rankdrift.tasks.kinds.generation import Generation

CUE = "\nHighlights:"


def _example(row: Mapping[str, Any]) -> Example:
    return answered(f"Article: {text(row, 'article')}{CUE}", text(row, "highlights"))


TASK = Task(
    name="cnn_dailymail",
    version=1,
    kind=Generation(stop=("\n\n",), max_new_tokens=128),
    metrics=("rouge_lsum", "rouge1", "rouge2", "rouge_l"),
    columns=("article", "highlights"),
    example=_example,
    cue=CUE,
    source=Source("abisee/cnn_dailymail", "3.0.0", "cnn_dailymail"),
)
