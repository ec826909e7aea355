"""Logits at chosen positions only: with a vocabulary of 100,000 they are most of what a pass writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

CHUNK_POSITIONS = 256  # positions whose log-probabilities are in memory at once

Place = tuple[int, int]
"""Row and column of a batch."""


def logits_at(model: PreTrainedModel, places: Sequence[Place], **inputs: Any) -> tuple[Tensor, Any]:
    """Return a language model's logits at some places of a batch, and all of its output.

    The LM head is given the hidden states of those places and no others, so what a family does with its
    logits (caps, scales) is done as ever. ``logits_to_keep`` could only choose columns, the same ones for
    every row.

    Returns
    -------
    logits
        Shape (places, vocabulary), of the model's type.
    output
        What the model returned; its own ``logits`` are those.

    """
    rows, columns = torch.tensor(places, device=model.device).unbind(dim=1)

    def choose(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][rows, columns][None], *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    assert output.logits.shape[:2] == (1, len(places)), "the logits are not the LM head's"
    return output.logits[0], output


def token_log_probabilities(
    logits: Tensor, numbers: Sequence[int], tokens: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return log p of chosen tokens by log-softmax in fp32, and whether each is the most likely one.

    Parameters
    ----------
    logits
        Shape (places, vocabulary), any floating type.
    numbers, tokens
        For each of n values: at which place, and of which token.

    Returns
    -------
    log_probabilities
        Shape (n,), in nats.
    greedy
        Shape (n,).

    """
    values, greedy = np.empty(len(tokens)), np.empty(len(tokens), dtype=bool)
    places, wanted = np.asarray(numbers), np.asarray(tokens)
    for first in range(0, len(logits), CHUNK_POSITIONS):
        chunk = logits[first : first + CHUNK_POSITIONS]
        here = (places >= first) & (places < first + len(chunk))
        rows = torch.from_numpy(places[here] - first).to(chunk.device)
        chosen = torch.from_numpy(wanted[here]).to(chunk.device)
        values[here] = chunk.float().log_softmax(-1)[rows, chosen].double().cpu().numpy()
        greedy[here] = (chunk.argmax(-1)[rows] == chosen).cpu().numpy()
    return values, greedy
