"""Corpus BLEU, 0 to 100, over one or more references a text (Papineni et al., ACL 2002; Post, W18-6319).

sacreBLEU's defaults: 13a tokens, case kept, exponential smoothing. A corpus whose texts all have fewer than
four tokens has no 4-grams and scores 0 even when perfect: use exact_match there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rankdrift.metrics import Metric


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return sacreBLEU of texts against their references, whose number may differ from text to text."""
    from sacrebleu.metrics.bleu import BLEU

    if not references or len(predictions) != len(references):
        raise ValueError(f"BLEU of {len(predictions)} texts against {len(references)} sets of references")
    streams = list(zip_longest(*references))  # None where a text has fewer references than the most
    # force=True silences a warning about texts that end in ' .' and changes no number
    return BLEU(force=True).corpus_score(list(predictions), streams).score


METRIC = Metric(name="bleu", reads="text", best=100.0, compute=corpus_bleu)
