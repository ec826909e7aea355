"""Perplexity a byte: exp of the mean negative log-likelihood a byte, over all texts; lower is better.

Bytes are those of UTF-8 in the text before clean-up, as lm-evaluation-harness counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric, ScoredText
from rankdrift.metrics._text_likelihood import nats_per


def byte_perplexity(texts: Sequence[ScoredText], answers: Sequence[None]) -> float:
    """Return exp(-sum of log-likelihoods / sum of bytes)."""
    return math.exp(nats_per("bytes", texts, answers))


METRIC = Metric(
    name="byte_perplexity", reads="text_likelihood", best=1.0, compute=byte_perplexity, higher_is_better=False
)
