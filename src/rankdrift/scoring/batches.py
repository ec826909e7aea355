"""Batches of token sequences for scoring: alike in length, padded on the left, positions counted from 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def batches_by_length(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return the sequences' indices in batches of ``size``, longest first, so that little is padding.

    The longest come first because a batch that does not fit in memory should fail at once.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    return [order[first : first + size] for first in range(0, len(order), size)]


def left_padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``position_ids``, each int64 of shape (rows, longest).

    On the left, so that every row ends at the same column. Positions are counted from a row's first own
    token, not from the padding, so that a model with absolute positions gives what it gives unpadded.
    """
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        mask[row, longest - len(sequence) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}
