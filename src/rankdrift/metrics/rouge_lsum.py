"""ROUGE-Lsum: longest common subsequences sentence by sentence, F-measure, 0 to 100; the mean over texts.

For every sentence of the reference, the words that any sentence of the summary has in common with it in order
(the union of Lin, W04-1013, section 3.2), as rouge-score computes it with Porter stemming. It takes lines for
sentences; a text without lines is split by the rule of :func:`~rankdrift.metrics._sentences.sentences`, where
other work often asks NLTK's Punkt model. Without that a text is one sentence, and the value that of ROUGE-L.
"""

from __future__ import annotations

from rankdrift.metrics._rouge import rouge_metric
from rankdrift.metrics._sentences import sentences


def _by_line(text: str) -> str:
    return "\n".join(sentences(text))


METRIC = rouge_metric("rouge_lsum", "rougeLsum", _by_line)
