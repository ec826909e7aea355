"""Batches of token sequences for scoring: alike in length (``data.batches.padded`` pads them)."""

from __future__ import annotations

from collections.abc import Sequence


def batches_by_length(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return the sequences' indices in batches of ``size``, longest first, so that little is padding.

    The longest come first because a batch that does not fit in memory should fail at once.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    return [order[first : first + size] for first in range(0, len(order), size)]
