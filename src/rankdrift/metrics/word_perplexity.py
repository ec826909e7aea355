"""Perplexity a word: exp of the mean negative log-likelihood a word, over all texts; lower is better.

Words are what white space separates in the text before clean-up, as lm-evaluation-harness counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric, ScoredText
from rankdrift.metrics._text_likelihood import nats_per


def word_perplexity(texts: Sequence[ScoredText], answers: Sequence[None]) -> float:
    """Return exp(-sum of log-likelihoods / sum of words)."""
    return math.exp(nats_per("words", texts, answers))


METRIC = Metric(
    name="word_perplexity", reads="text_likelihood", best=1.0, compute=word_perplexity, higher_is_better=False
)
