"""Continuations: log p(continuation | context), with one pass over a context for all that follow it.

A pass over a context and all of a continuation but its last token, its stem, serves every continuation of
that context whose stem is a beginning of it: all single-token ones, for instance. Where the continuations
need several stems, the context is read once and its keys and values serve all of them, if the model's cache
allows it and enough is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankdrift.data.batches import padded
from rankdrift.scoring.batches import batches_by_tokens
from rankdrift.scoring.caches import keeps_keys_and_values, rows_of
from rankdrift.scoring.logits import logits_at, token_log_probabilities
from rankdrift.tasks.kinds import Continuation, Likelihood, Tokens

WORTH_SHARING = 0.1
"""Part of the tokens that reading a context once must save; below it a second pass costs more."""

Stems = dict[Tokens, list[int]]
"""What follows a context in a pass -> the numbers of the requests that the pass serves."""


class Context(NamedTuple):
    """A context with all that is asked of it."""

    tokens: Tokens
    stems: Stems


class Row(NamedTuple):
    """A row of a pass: a stem behind a context."""

    context: int
    """Number of the context in its list."""
    stem: Tokens
    served: list[int]
    """Numbers of requests."""


class Asked(NamedTuple):
    """A token whose probability a request asks for, and the place whose logits predict it."""

    row: int
    column: int
    token: int
    request: int


class Tally:
    """Sums over the tokens of each request, in fp64."""

    def __init__(self, requests: Sequence[Continuation]) -> None:
        self.requests = requests
        self.log_likelihoods = np.zeros(len(requests))
        self.greedy = np.ones(len(requests), dtype=bool)

    def asked(self, request: int, row: int, column: int, part: slice = slice(None)) -> list[Asked]:
        """Return what a request asks of a row whose ``column`` predicts the first token of the part."""
        tokens = self.requests[request].continuation[part]
        return [Asked(row, column + step, token, request) for step, token in enumerate(tokens)]

    def score(self, model: PreTrainedModel, asked: Sequence[Asked], **inputs: Any) -> Any:
        """Pass a batch, add what it says of the tokens asked for, and return its cache, if it made one."""
        places = sorted({(one.row, one.column) for one in asked})
        numbers = {place: number for number, place in enumerate(places)}
        logits, output = logits_at(model, places, **inputs)
        of = [numbers[one.row, one.column] for one in asked]
        values, greedy = token_log_probabilities(logits, of, [one.token for one in asked])
        requests = [one.request for one in asked]
        np.add.at(self.log_likelihoods, requests, values)
        np.logical_and.at(self.greedy, requests, greedy)
        return getattr(output, "past_key_values", None)

    def answers(self) -> list[Likelihood]:
        """Return the sums."""
        return [
            Likelihood(float(value), bool(greedy))
            for value, greedy in zip(self.log_likelihoods, self.greedy, strict=True)
        ]


@torch.no_grad()
def continuation_likelihoods(
    model: PreTrainedModel,
    requests: Sequence[Continuation],
    pad_id: int,
    token_budget: int,
    advance: Callable[[int], None] = lambda answered: None,
) -> list[Likelihood]:
    """Return the answers, in the order of the requests.

    Parameters
    ----------
    model
        A causal language model in evaluation mode.
    requests
        Contexts and continuations, none of them empty.
    pad_id
        Padding token.
    token_budget
        Rows x longest of a pass, where a row is a context and what follows it.
    advance
        Called with the number of requests answered by each batch.

    """
    tally = Tally(requests)
    alone, shared = _plan(requests, model)
    rows = _rows(alone)
    lengths = [len(alone[row.context].tokens) + len(row.stem) for row in rows]
    for batch in batches_by_tokens(lengths, token_budget):
        some = [rows[number] for number in batch]
        _pass_whole(model, alone, some, pad_id, tally)
        advance(sum(len(row.served) for row in some))
    for batch in batches_by_tokens([len(context.tokens) for context in shared], token_budget):
        contexts = [shared[number] for number in batch]
        _pass_shared(model, contexts, pad_id, token_budget, tally)
        advance(sum(len(row.served) for row in _rows(contexts)))
    return tally.answers()


def shared_stems(choices: Sequence[Tokens]) -> Stems:
    """Return the stems to append to a context, and for each the indices of the continuations it serves.

    A continuation is predicted by the context and all its own tokens but the last, its stem; a pass over a
    stem also serves every continuation whose stem is a beginning of it.

    >>> shared_stems([(5,), (7,), (3, 4, 5), (3, 6)])
    {(3, 4): [0, 1, 2, 3]}
    """
    stems: Stems = {}
    holder: Tokens = ()
    # in this order all stems that begin like one stand right before it
    for index in sorted(range(len(choices)), key=lambda index: choices[index][:-1], reverse=True):
        stem = choices[index][:-1]
        if not stems or holder[: len(stem)] != stem:
            holder = stem
        stems.setdefault(holder, []).append(index)
    return {stem: sorted(served) for stem, served in stems.items()}


def _plan(requests: Sequence[Continuation], model: PreTrainedModel) -> tuple[list[Context], list[Context]]:
    """Return the contexts to be read again for each stem, and those to be read once."""
    of: dict[Tokens, list[int]] = {}
    for number, request in enumerate(requests):
        of.setdefault(request.context, []).append(number)
    alone: list[Context] = []
    shared: list[Context] = []
    for tokens, numbers in of.items():
        stems = shared_stems([requests[number].continuation for number in numbers])
        own = {stem: [numbers[index] for index in served] for stem, served in stems.items()}
        (shared if _worth_sharing(len(tokens), stems) else alone).append(Context(tokens, own))
    if shared and not keeps_keys_and_values(model):
        return alone + shared, []
    return alone, shared


def _worth_sharing(length: int, stems: Stems) -> bool:
    """Return whether reading a context once, and not before each of its stems, saves enough tokens."""
    saved = length * (len(stems) - 1)
    return saved > WORTH_SHARING * sum(length + len(stem) for stem in stems)


def _rows(contexts: Sequence[Context]) -> list[Row]:
    return [
        Row(number, stem, served)
        for number, context in enumerate(contexts)
        for stem, served in context.stems.items()
    ]


def _pass_whole(
    model: PreTrainedModel, contexts: Sequence[Context], rows: Sequence[Row], pad_id: int, tally: Tally
) -> None:
    """Pass contexts with a stem each; padding comes last, where no token of a causal model sees it."""
    sequences = [contexts[row.context].tokens + row.stem for row in rows]
    asked = [
        one
        for place, row in enumerate(rows)
        for request in row.served
        for one in tally.asked(request, place, len(contexts[row.context].tokens) - 1)
    ]
    tally.score(model, asked, use_cache=False, **padded(sequences, pad_id, "right", model.device))


def _pass_shared(
    model: PreTrainedModel, contexts: Sequence[Context], pad_id: int, token_budget: int, tally: Tally
) -> None:
    """Pass contexts, which predicts all first tokens, and then the stems behind the contexts' cache."""
    batch = padded([context.tokens for context in contexts], pad_id, "left", model.device)
    longest = batch["input_ids"].shape[1]
    rows = _rows(contexts)
    first = [
        one
        for row in rows
        for request in row.served
        for one in tally.asked(request, row.context, longest - 1, slice(1))
    ]
    cache = tally.score(model, first, use_cache=True, **batch)
    rows = [row for row in rows if row.stem]
    for numbers in batches_by_tokens([longest + len(row.stem) for row in rows], token_budget):
        some = [rows[number] for number in numbers]
        of = [row.context for row in some]
        asked = [
            one
            for place, row in enumerate(some)
            for request in row.served
            for one in tally.asked(request, place, 0, slice(1, None))
        ]
        inputs = _behind([row.stem for row in some], batch["attention_mask"][of], pad_id)
        tally.score(model, asked, use_cache=True, past_key_values=rows_of(cache, of), **inputs)


def _behind(stems: Sequence[Tokens], context_mask: Tensor, pad_id: int) -> dict[str, Tensor]:
    """Return a batch of stems, padded on the right, that follow contexts padded on the left."""
    batch = padded(stems, pad_id, "right", context_mask.device)
    steps = torch.arange(batch["input_ids"].shape[1], device=context_mask.device)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": torch.cat([context_mask, batch["attention_mask"]], dim=1),
        "position_ids": context_mask.sum(dim=1, keepdim=True) + steps,
    }
