"""Perplexity a word: exp of the mean negative log-likelihood a word, over all texts; lower is better.

Words are what white space separates in the text before clean-up, as lm-evaluation-harness counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric, ScoredText


def word_perplexity(texts: Sequence[ScoredText], answers: Sequence[None]) -> float:
    """Return exp(-sum of log-likelihoods / sum of words)."""
    if not texts or len(texts) != len(answers):
        raise ValueError(f"the perplexity of {len(texts)} texts for {len(answers)} is undefined")
    return math.exp(-sum(text.log_likelihood for text in texts) / sum(text.words for text in texts))


METRIC = Metric(
    name="word_perplexity", reads="text_likelihood", best=1.0, compute=word_perplexity, higher_is_better=False
)
