"""WinoGrande: which of two names a gap in a sentence stands for (Sakaguchi et al. 2019, arXiv 1907.10641).

Scored by partial evaluation, as causal models are: how likely is the rest of the sentence behind each name
(arXiv 1806.02847; lm-evaluation-harness, task version 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.errors import UserError
from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import named_label, text
from rankdrift.tasks.kinds import multiple_choice


def _example(row: Mapping[str, Any]) -> Example:
    sentence = text(row, "sentence")
    before, gap, after = sentence.partition("_")
    if not gap or not after.strip():
        raise UserError(
            f"column 'sentence' has no '_' with text behind it: {row['sentence']!r}; correct the row"
        )
    contexts = (before + text(row, "option1"), before + text(row, "option2"))
    right = named_label(row, "answer", (1, 2))
    # what is asked, not which is right, is what a row goes by: the prompt is the sentence as it stands
    return Example(sentence, f" {after.strip()}", label=right, contexts=contexts)


TASK = Task(
    name="winogrande",
    version=1,
    kind=multiple_choice.KIND,
    metrics=("accuracy",),
    columns=("sentence", "option1", "option2", "answer"),
    example=_example,
    source=Source(
        "allenai/winogrande",
        "winogrande_xl",
        "winogrande",
        {"train": "train", "test": "validation"},
        carved=0.05,
    ),
)
