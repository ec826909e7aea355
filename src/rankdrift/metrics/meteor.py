"""METEOR, 0 to 1: words match exactly, by their Porter stem, or as synonyms of WordNet. The mean over texts.

NLTK's METEOR with NLTK's WordNet 3.0, which has to be installed once (10 MB); no package on the Python index
ships it. Without it the metric refuses; ``meteor_stem`` needs no WordNet.
"""

from __future__ import annotations

from typing import Any

from rankdrift.errors import UserError
from rankdrift.metrics._meteor import meteor_metric


def wordnet() -> Any:
    """Return NLTK's WordNet; raise UserError where it is not installed."""
    from nltk.corpus import wordnet as corpus

    try:
        corpus.ensure_loaded()
    except LookupError as error:
        raise UserError(
            "metric 'meteor' needs WordNet, which NLTK does not find on this machine: run "
            "'python -m nltk.downloader wordnet' once where there is a network, or use the metric "
            "'meteor_stem', which matches words and stems alone"
        ) from error
    return corpus


METRIC = meteor_metric("meteor", wordnet)
