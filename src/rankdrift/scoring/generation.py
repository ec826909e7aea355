"""Greedy generation in batches.

transformers' ``generate`` fills what a call leaves unset from the model's own generation settings, so a
repetition penalty or a minimum length saved with a base model would change what is measured. The loop here
takes the most likely token and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankdrift.data.batches import padded
from rankdrift.scoring.batches import batches_by_length

Tokens = tuple[int, ...]


@torch.inference_mode()
def greedy_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[Tokens]:
    """Return each prompt's most likely continuation, token by token.

    A continuation ends before the first ``eos_id``, or after ``max_new_tokens`` tokens.
    """
    found: dict[int, Tokens] = {}
    for rows in batches_by_length(prompts, batch_size):
        batch = padded([prompts[row] for row in rows], pad_id, "left", model.device)
        tokens = _greedy_batch(model, batch, eos_id, max_new_tokens)
        for row, continuation in zip(rows, tokens.tolist(), strict=True):
            found[row] = _until(continuation, eos_id)
    return [found[row] for row in range(len(prompts))]


def _greedy_batch(
    model: PreTrainedModel, batch: dict[str, Tensor], eos_id: int, max_new_tokens: int
) -> Tensor:
    """Return the next tokens of a left-padded batch, shape (rows, steps); what follows an EOS is noise."""
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    cache = None
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    steps: list[Tensor] = []
    while len(steps) < max_new_tokens and not finished.all():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        steps.append(output.logits[:, -1].argmax(-1))
        finished |= steps[-1] == eos_id
        ids, positions = steps[-1][:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(steps, dim=1)


def _until(tokens: Sequence[int], end: int) -> Tokens:
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)
