"""Sentences of a text by rule: the same everywhere, without a trained model to download."""

from __future__ import annotations

import re

_END = re.compile(
    r"""(?:\.\.+(?=\s+["'\u2018\u201c(\[]*[^\W_a-z])  # dots, where a capital or a digit follows,
        |[.!?]+["'\u2019\u201d)\]]*(?<!\.\.)          # or an end, also inside quotation marks or brackets
        )\s+""",
    re.VERBOSE,
)
_ABBREVIATED = re.compile(
    r"(?<![^\s(\"'\u2018\u201c])(?:[A-Z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Col|Lt|Sgt|Capt|Gov"
    r"|Sen|Rep|St|Mt|Jr|Sr|vs|v|No|etc|cf|al|Inc|Ltd|Corp|Co|Bros|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov"
    r"|Dec)$"
)
"""A word before a full stop that is no end: an initial, letters with stops between, a usual abbreviation."""


def sentences(text: str) -> list[str]:
    """Return the sentences of a text in order, stripped; none of an empty one.

    Where the text has lines, they are its sentences. Else one ends at ``.``, ``!`` or ``?`` before white
    space, unless the full stop belongs to an initial, a title, a month or the like; at several dots only
    where a capital or a digit follows.

    >>> sentences("He left. Mr. J. Smith stayed! (He was late...) why? 3 asked.")
    ['He left.', 'Mr. J. Smith stayed!', '(He was late...)', 'why?', '3 asked.']
    """
    text = text.strip()
    if "\n" in text:
        return [line.strip() for line in text.split("\n") if line.strip()]
    found, start = [], 0
    for end in _END.finditer(text):
        if end.group().startswith(".") and _ABBREVIATED.search(text, start, end.start()):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [*found, text[start:]] if text[start:] else found
