"""How the built-in tasks write down their vocabulary: blocks of phrases, separated by commas."""

from __future__ import annotations


def phrases(block: str) -> tuple[str, ...]:
    """Return the phrases of a block, with line breaks and repeated spaces as one space.

    >>> phrases("a tarn, two waterfalls")
    ('a tarn', 'two waterfalls')
    """
    return tuple(" ".join(phrase.split()) for phrase in block.split(","))
