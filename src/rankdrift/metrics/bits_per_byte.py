"""Bits per byte: the mean negative log2-likelihood a byte of UTF-8, over all texts; lower is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric, ScoredText


def bits_per_byte(texts: Sequence[ScoredText], answers: Sequence[None]) -> float:
    """Return -sum of log-likelihoods / (ln 2 x sum of bytes)."""
    if not texts or len(texts) != len(answers):
        raise ValueError(f"bits per byte of {len(texts)} texts for {len(answers)} are undefined")
    nats = -sum(text.log_likelihood for text in texts)
    return nats / math.log(2) / sum(text.bytes for text in texts)


METRIC = Metric(
    name="bits_per_byte", reads="text_likelihood", best=0.0, compute=bits_per_byte, higher_is_better=False
)
