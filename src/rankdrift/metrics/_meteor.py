"""METEOR, 0 to 1 (Banerjee & Lavie, W05-0909), as nltk.translate.meteor_score computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics._sentences import sentences


def tokens(text: str) -> list[str]:
    """Return NLTK's words of a text, sentence by sentence.

    Those of ``nltk.word_tokenize`` but for the Punkt model, whose place our rule for sentences takes.

    >>> tokens("It isn't far. Go!")
    ['It', 'is', "n't", 'far', '.', 'Go', '!']
    """
    parts = (sentence for line in text.splitlines() for sentence in sentences(line))
    return [word for sentence in parts for word in _tokenizer().tokenize(sentence)]


def meteor_metric(name: str, wordnet: Callable[[], Any]) -> Metric:
    """Return METEOR with the synonyms of ``wordnet()``, an object with NLTK's ``synsets(word)``.

    NLTK's parameters: alpha 0.9, beta 3, gamma 0.5; a text scores the best over its references. An identical
    text of n words scores 1 - 0.5 / n^3, so that 1 is the limit for long ones; an empty one scores 0.
    """

    def score(prediction: str, references: Sequence[str]) -> float:
        from nltk.translate.meteor_score import meteor_score  # slow, so only where it is used

        words = [tokens(reference) for reference in references]
        return float(meteor_score(words, tokens(prediction), wordnet=wordnet()))

    return Metric(name=name, reads="text", best=1.0, compute=mean_over_items(score), per_item=score)


@functools.cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()
