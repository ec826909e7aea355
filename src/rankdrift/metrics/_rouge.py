"""ROUGE F-measures, 0 to 100 (Lin, W04-1013), as rouge-score computes them, with Porter stemming."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def rouge_metric(name: str, variant: str, prepare: Callable[[str], str] = str) -> Metric:
    """Return the metric of one of rouge-score's variants ("rouge1", "rouge2", "rougeL", "rougeLsum").

    ``prepare`` makes of every text the one that is scored. A text scores the best F-measure over its
    references; the metric is the mean over texts, times 100.
    """

    def score(prediction: str, references: Sequence[str]) -> float:
        texts = [prepare(reference) for reference in references]
        return 100.0 * _scorer(variant).score_multi(texts, prepare(prediction))[variant].fmeasure

    return Metric(name=name, reads="text", best=100.0, compute=mean_over_items(score), per_item=score)


@functools.cache
def _scorer(variant: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: slow, so only where it is used

    return RougeScorer([variant], use_stemmer=True)
