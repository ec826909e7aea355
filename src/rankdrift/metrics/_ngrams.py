"""Counts of n-grams, which the BLEU scores of CodeXGLUE share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

ORDERS = (1, 2, 3, 4)


class Overlap(NamedTuple):
    """What BLEU needs of one text and its references."""

    matched: tuple[int, ...]
    """(4,): n-grams of the text that a reference has, each at most as often as one reference has it."""
    possible: tuple[int, ...]
    """(4,): n-grams of the text."""
    length: int
    """Tokens of the text."""
    reference_length: int
    """Tokens of the shortest reference."""


def overlap(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> Overlap:
    """Count the n-grams, n = 1 to 4, of a text and those in a reference (Papineni et al., P02-1040)."""
    matched = []
    for order in ORDERS:
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        matched.append((_ngrams(tokens, order) & most).total())
    possible = tuple(max(len(tokens) - order + 1, 0) for order in ORDERS)
    return Overlap(tuple(matched), possible, len(tokens), min(len(reference) for reference in references))


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
