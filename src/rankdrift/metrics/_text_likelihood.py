"""What the metrics of texts' likelihoods have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rankdrift.metrics import ScoredText


def nats_per(unit: Literal["words", "bytes"], texts: Sequence[ScoredText], answers: Sequence[None]) -> float:
    """Return -sum of log-likelihoods / sum of words or bytes, all texts together.

    Raises ValueError where there are no texts, or not as many as answers.
    """
    if not texts or len(texts) != len(answers):
        raise ValueError(f"the likelihood of {len(texts)} texts for {len(answers)} is undefined")
    return -sum(text.log_likelihood for text in texts) / sum(getattr(text, unit) for text in texts)
