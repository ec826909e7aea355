"""SQuAD 2.0: answer a question about a paragraph, or say that it has no answer (Rajpurkar et al. 2018).

arXiv 1806.03822. Questions about one paragraph are not independent: the paragraph is their ``document``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift import files
from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import text, texts
from rankdrift.tasks.kinds.generation import Generation

NO_ANSWER = " unanswerable"


def _example(row: Mapping[str, Any]) -> Example:
    passage, question = text(row, "context"), text(row, "question")
    answers = [answer.strip() for answer in texts(row, "answers", "text", least=0)]
    return Example(
        prompt=f"Passage: {passage}\nQuestion: {question}\nAnswer:",
        target=f" {answers[0]}" if answers else NO_ANSWER,
        references=tuple(answers),
        document=f"{text(row, 'title')}/{files.digest_text(passage)[:8]}",
    )


TASK = Task(
    name="squad_v2",
    version=1,
    kind=Generation(max_new_tokens=48, no_answer=NO_ANSWER),
    metrics=("squad_v2", "squad_v2_exact"),
    columns=("title", "context", "question", "answers"),
    example=_example,
    source=Source(
        "rajpurkar/squad_v2", None, "squad_v2", {"train": "train", "test": "validation"}, carved=0.05
    ),
)
