"""Completions: what a model writes when it always takes the most likely token, in batches.

transformers' ``generate`` fills what a call leaves unset from the model's own generation settings, so a
repetition penalty or a minimum length saved with a base model would change what is measured. The loop here
takes the most likely token and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from rankdrift.data.batches import padded
from rankdrift.scoring.batches import batches_by_tokens
from rankdrift.scoring.caches import keeps_keys_and_values, rows_of
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.logits import logits_at
from rankdrift.tasks.kinds import Completion


@dataclass
class Written:
    """What has been written for a request."""

    request: Completion
    tokens: list[int] = field(default_factory=list)
    """Without the EOS that ended it."""
    finished: bool = False

    def add(self, token: int, detokenizer: Detokenizer) -> None:
        """Take the next token, and see whether it is the last."""
        if token in detokenizer.eos_ids or token in self.request.ends:
            self.finished = True
            return
        self.tokens.append(token)
        full = len(self.tokens) == self.request.max_new_tokens
        # read from the first token on: a stop may begin anywhere, and end within a token
        self.finished = full or (bool(self.request.stop) and self.stopped(detokenizer) is not None)

    def stopped(self, detokenizer: Detokenizer) -> str | None:
        """Return the text before the first stop; None where there is no stop."""
        text = detokenizer.decode(self.tokens)
        ends = [text.find(stop) for stop in self.request.stop if stop in text]
        return text[: min(ends)] if ends else None

    def text(self, detokenizer: Detokenizer) -> str:
        """Return the answer."""
        stopped = self.stopped(detokenizer)
        return detokenizer.decode(self.tokens) if stopped is None else stopped


@torch.no_grad()
def completion_texts(
    model: PreTrainedModel,
    requests: Sequence[Completion],
    detokenizer: Detokenizer,
    token_budget: int,
    advance: Callable[[int], None] = lambda answered: None,
) -> list[str]:
    """Return the answers, in the order of the requests.

    An answer ends before the first EOS or stop, or after its request's ``max_new_tokens``.

    Parameters
    ----------
    model
        A causal language model in evaluation mode.
    requests
        Prompts, none empty.
    detokenizer
        The tokenizer's part.
    token_budget
        Rows x longest of a batch, where a row is a prompt and all that may be written behind it.
    advance
        Called with the number of requests answered by each batch.

    """
    written = [Written(request) for request in requests]
    padding = bool(requests) and keeps_keys_and_values(model)
    write = _write if padding else _write_without_cache
    for batch in _batches(requests, token_budget, padding):
        write(model, [written[number] for number in batch], detokenizer)
        advance(len(batch))
    return [one.text(detokenizer) for one in written]


def _batches(requests: Sequence[Completion], token_budget: int, padding: bool) -> list[list[int]]:
    """Return batches of requests; where no row may be padded, of prompts of the same length."""
    lengths = [len(request.prompt) + request.max_new_tokens for request in requests]
    if padding:
        return batches_by_tokens(lengths, token_budget)
    alike: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(len(request.prompt), []).append(number)
    return [
        [numbers[index] for index in batch]
        for _, numbers in sorted(alike.items(), reverse=True)
        for batch in batches_by_tokens([lengths[number] for number in numbers], token_budget)
    ]


def _write(model: PreTrainedModel, rows: list[Written], detokenizer: Detokenizer) -> None:
    """Write all rows to their end; once half of them are finished the others go on without them."""
    batch = padded([row.request.prompt for row in rows], detokenizer.pad_id, "left", model.device)
    cache: Cache | None = None
    while True:
        last = batch["input_ids"].shape[1] - 1
        places = [(row, last) for row in range(len(rows))]
        logits, output = logits_at(model, places, past_key_values=cache, use_cache=True, **batch)
        tokens, cache = logits.argmax(-1), output.past_key_values
        _add(rows, tokens, detokenizer)
        going = [number for number, row in enumerate(rows) if not row.finished]
        if not going:
            return
        batch = _next(batch, tokens)
        if 2 * len(going) <= len(rows):
            rows, cache = [rows[number] for number in going], rows_of(output.past_key_values, going)
            batch = {name: tensor[going] for name, tensor in batch.items()}


def _next(batch: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """Return the batch that passes the new tokens behind those that the cache holds."""
    mask = batch["attention_mask"]
    return {
        "input_ids": tokens[:, None],
        "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        "position_ids": batch["position_ids"][:, -1:] + 1,
    }


def _write_without_cache(model: PreTrainedModel, rows: list[Written], detokenizer: Detokenizer) -> None:
    """Write rows of one length by passing all of their tokens again and again."""
    ids = torch.tensor([row.request.prompt for row in rows], device=model.device)
    while rows:
        places = [(row, ids.shape[1] - 1) for row in range(len(rows))]
        tokens = logits_at(model, places, input_ids=ids, use_cache=False)[0].argmax(-1)
        _add(rows, tokens, detokenizer)
        going = [number for number, row in enumerate(rows) if not row.finished]
        ids = torch.cat([ids, tokens[:, None]], dim=1)[going]
        rows = [rows[number] for number in going]


def _add(rows: Sequence[Written], tokens: Tensor, detokenizer: Detokenizer) -> None:
    for row, token in zip(rows, tokens.tolist(), strict=True):
        if not row.finished:
            row.add(token, detokenizer)
