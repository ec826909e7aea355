"""Batches of token sequences for scoring: alike in length (``data.batches.padded`` pads them)."""

from __future__ import annotations

from collections.abc import Sequence


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return the indices of sequences in batches of rows x longest <= ``budget`` tokens, longest first.

    A sequence that is longer than the budget is a batch of its own.

    >>> batches_by_tokens([2, 9, 3, 4, 1], budget=8)
    [[1], [3, 2], [0, 4]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(index)
    return batches
