"""Bits per byte: the mean negative log2-likelihood a byte of UTF-8, over all texts; lower is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric, ScoredText
from rankdrift.metrics._text_likelihood import nats_per


def bits_per_byte(texts: Sequence[ScoredText], answers: Sequence[None]) -> float:
    """Return -sum of log-likelihoods / (ln 2 x sum of bytes)."""
    return nats_per("bytes", texts, answers) / math.log(2)


METRIC = Metric(
    name="bits_per_byte", reads="text_likelihood", best=0.0, compute=bits_per_byte, higher_is_better=False
)
