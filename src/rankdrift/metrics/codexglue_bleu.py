"""CodeXGLUE's smoothed BLEU-4 of code-to-text, 0 to 100: the mean over texts of a sentence's BLEU.

As Code-Text/code-to-text/evaluator/evaluator.py of microsoft/CodeXGLUE has it (commit ac74a62): lower case;
runs of letters and digits and single other characters are tokens; orders 2 to 4 are counted with one n-gram
more that matches (Lin & Och, C04-1072), and the lengths of the brevity penalty with one token more. An empty
text scores 100 exp(-length of the shortest reference), not 0. The script reads lines and what comes before a
tab; here lines and tabs are white space like any other.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics._ngrams import ORDERS, overlap

TOKEN = re.compile(r"[^\W_]+|[^\s\w]|_")
TINY = sys.float_info.min  # no unigram matched: the logarithm is large, not infinite


def tokens(text: str) -> list[str]:
    """Return the tokens of a text.

    >>> tokens("Returns max_len (3.5).")
    ['returns', 'max', '_', 'len', '(', '3', '.', '5', ')', '.']
    """
    return TOKEN.findall(text.lower())


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """Return 100 exp(min(0, 1 - (r + 1) / (c + 1)) + mean_n log p_n) for lengths c, r and precisions p_n."""
    found = overlap(tokens(prediction), [tokens(reference) for reference in references])
    total = 0.0
    for order, matched, possible in zip(ORDERS, found.matched, found.possible, strict=True):
        smoothing = (order > 1) + TINY
        total += math.log(matched + smoothing) - math.log(possible + smoothing)
    brevity = min(0.0, 1 - (found.reference_length + 1) / (found.length + 1))
    return 100.0 * math.exp(total / len(ORDERS) + brevity)


METRIC = Metric(
    name="codexglue_bleu",
    reads="text",
    best=100.0,
    compute=mean_over_items(sentence_bleu),
    per_item=sentence_bleu,
)
