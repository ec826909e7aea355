"""What SQuAD's official script, evaluate-v2.0.py, computes of answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from rankdrift.metrics import Answered

Score = Callable[[Answered, Sequence[str]], float]

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Return the words of an answer in lower case, without ASCII punctuation and articles.

    >>> words("The Beatles' 1st (an) LP")
    ['beatles', '1st', 'lp']
    """
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact(prediction: Answered, references: Sequence[str]) -> float:
    """Return 1 where the words are those of an accepted answer, else 0."""
    found = words(prediction.text)
    return float(any(found == accepted for accepted in _accepted(references)))


def f1(prediction: Answered, references: Sequence[str]) -> float:
    """Return the best F1 of the bags of words over the accepted answers, 0 to 1."""
    found = words(prediction.text)
    return max(_bag_f1(found, accepted) for accepted in _accepted(references))


def all_values(predictions: Sequence[Answered], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the official script's values by its names, 0 to 100, 13 where both kinds of question occur.

    ``exact``, ``f1`` and ``total``; the same of questions with an answer (``HasAns_``) and without
    (``NoAns_``), absent where there are none; ``best_exact`` and ``best_f1``, had no answer been given above
    the probability ``best_exact_thresh`` or ``best_f1_thresh`` of no answer. The other values do not depend
    on that probability: the script's threshold is 1.
    """
    scores = {
        name: [score(*pair) for pair in zip(predictions, answers, strict=True)] for name, score in SCORES
    }
    values = _means(scores, range(len(answers)), "")
    values |= _means(scores, [i for i, accepted in enumerate(answers) if accepted], "HasAns_")
    values |= _means(scores, [i for i, accepted in enumerate(answers) if not accepted], "NoAns_")
    for name, of_items in scores.items():
        best, threshold = _best_threshold(of_items, predictions, answers)
        values |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return values


SCORES: tuple[tuple[str, Score], ...] = (("exact", exact), ("f1", f1))


def _accepted(references: Sequence[str]) -> list[list[str]]:
    """Return the words of the accepted answers; of one without words none is left, and no answer is right."""
    return [found for found in map(words, references) if found] or [[]]


def _bag_f1(found: list[str], accepted: list[str]) -> float:
    if not found or not accepted:
        return float(found == accepted)
    shared = (Counter(found) & Counter(accepted)).total()
    if not shared:
        return 0.0
    # 2 shared / (both lengths) would differ in the last bit, by which the best threshold may move
    precision, recall = shared / len(found), shared / len(accepted)
    return 2 * precision * recall / (precision + recall)


def _means(scores: dict[str, list[float]], items: Sequence[int], prefix: str) -> dict[str, float]:
    if not items:
        return {}
    means = {
        prefix + name: 100.0 * sum(of_items[i] for i in items) / len(items)
        for name, of_items in scores.items()
    }
    return {**means, f"{prefix}total": float(len(items))}


def _best_threshold(
    scores: Sequence[float], predictions: Sequence[Answered], answers: Sequence[Sequence[str]]
) -> tuple[float, float]:
    """Return the best mean score, 0 to 100, and the probability of no answer up to which answers are given.

    Questions are answered one after the other from the surest on, so that of several with one probability the
    value may count some only, by the order of the items: so does the official script.
    """
    score = best = float(sum(not accepted for accepted in answers))
    threshold = 0.0
    for i in sorted(range(len(answers)), key=lambda i: predictions[i].no_answer_probability):
        if answers[i]:
            score += scores[i]
        elif predictions[i].text:
            score -= 1.0
        if score > best:
            best, threshold = score, predictions[i].no_answer_probability
    return 100.0 * best / len(answers), threshold
