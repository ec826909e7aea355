"""SQuAD v2, 0 to 100: F1 of the words of an answer, over questions with an answer and without.

As the official script evaluate-v2.0.py has it: lower case, without punctuation and articles; the best of the
accepted answers counts; a question without an answer is right where the text is empty, and else 0. The mean
over questions; ``parts`` gives all 13 values of the script. (Rajpurkar et al., P18-2124)
"""

from __future__ import annotations

from collections.abc import Sequence

from rankdrift.metrics import Answered, Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics._squad import all_values, f1


def score(prediction: Answered, references: Sequence[str]) -> float:
    """Return 100 x the F1 of one answer; without references the question has no answer."""
    return 100.0 * f1(prediction, references)


METRIC = Metric(
    name="squad_v2",
    reads="answer",
    best=100.0,
    compute=mean_over_items(score),
    per_item=score,
    parts=all_values,
)
