"""METEOR without WordNet, 0 to 1: words match exactly or by their Porter stem, never as synonyms.

Equal to NLTK's METEOR with a WordNet that knows no word; not to be compared with published METEOR (metric
``meteor``), which is higher as a rule. The mean over texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankdrift.metrics._meteor import meteor_metric


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> Sequence[object]:
        """Return no set of synonyms."""
        return ()


METRIC = meteor_metric("meteor_stem", NoSynonyms)
