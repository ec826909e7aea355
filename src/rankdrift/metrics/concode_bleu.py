"""CodeXGLUE's BLEU of text-to-code (CONCODE), 0 to 100: of the corpus, not a mean over texts.

As Text-Code/text-to-code/evaluator of microsoft/CodeXGLUE has it (commit ac74a62), which reports it with
exact_match: tokens are separated by white space and keep their case; every order is counted with one n-gram
more that matches (Lin & Och, C04-1072). The official figure is this one rounded to two decimals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankdrift.metrics import Metric
from rankdrift.metrics._ngrams import overlap


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return 100 exp(min(0, 1 - r / c) + mean_n log p_n), c and r the lengths of the corpus in tokens.

    0 where all texts are empty, the limit (the official script divides by zero). ValueError where there are
    no texts or not as many as sets of references.
    """
    if not references:
        raise ValueError("BLEU over no texts is undefined")
    found = [
        overlap(text.split(), [one.split() for one in accepted])
        for text, accepted in zip(predictions, references, strict=True)
    ]
    length = sum(text.length for text in found)
    if not length:
        return 0.0
    matched = [sum(counts) for counts in zip(*(text.matched for text in found), strict=True)]
    possible = [sum(counts) for counts in zip(*(text.possible for text in found), strict=True)]
    precisions = [(hits + 1) / (all_of + 1) for hits, all_of in zip(matched, possible, strict=True)]
    brevity = min(0.0, 1 - sum(text.reference_length for text in found) / length)
    return 100.0 * math.exp(brevity) * math.prod(precisions) ** (1 / len(precisions))


METRIC = Metric(name="concode_bleu", reads="text", best=100.0, compute=corpus_bleu)
