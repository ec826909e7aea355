"""Answer the requests of any tasks together: in batches of like length, on one rank or on several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from rankdrift.scoring.class_probabilities import class_log_probabilities
from rankdrift.scoring.completions import completion_texts
from rankdrift.scoring.continuations import continuation_likelihoods
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.shares import Shares
from rankdrift.tasks.kinds import Answer, Classes, Completion, Continuation, Request

Kind = TypeVar("Kind", Continuation, Completion, Classes)
Progress = Callable[[int, int], None]
"""Takes how many requests are answered, and how many there are."""


@torch.no_grad()  # parameters that ZeRO-3 gathers in inference mode could not be trained afterwards
def answer(
    model: PreTrainedModel,
    requests: Sequence[Request],
    detokenizer: Detokenizer,
    token_budget: int,
    shares: Shares | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return the answers, in the order of the requests.

    An answer depends on the model and on its own request alone: not on the other requests, on their order, on
    the budget or on the number of ranks (but for rounding in the last digits).

    Parameters
    ----------
    model
        In evaluation mode; with an LM head for continuations and completions, with a classification head for
        classes. No request may be longer than it can read.
    requests
        Of one kind or several.
    detokenizer
        The tokenizer's part.
    token_budget
        Rows x longest of a pass: what bounds memory.
    shares
        The ranks that answer together; every one of them has to ask the same, and gets all answers.
    progress
        Called after every batch, with the requests of this rank.

    """
    assert all(_fits(request, model) for request in requests), "a request is longer than the model can read"
    own = shares.own(requests) if shares else list(range(len(requests)))
    done = 0

    def advance(answered: int) -> None:
        nonlocal done
        done += answered
        if progress is not None:
            progress(done, len(own))

    with shares.in_step(model) if shares else nullcontext():
        found = _answers(
            model, {number: requests[number] for number in own}, detokenizer, token_budget, advance
        )
    if shares:
        found = shares.gathered(found)
    return [found[number] for number in range(len(requests))]


def _answers(
    model: PreTrainedModel,
    requests: dict[int, Request],
    detokenizer: Detokenizer,
    token_budget: int,
    advance: Callable[[int], None],
) -> dict[int, Answer]:
    """Return the answers to numbered requests, one kind after the other."""
    found: dict[int, Answer] = {}
    continuations = _of_kind(Continuation, requests)
    completions = _of_kind(Completion, requests)
    classes = _of_kind(Classes, requests)
    likelihoods = continuation_likelihoods(
        model, list(continuations.values()), detokenizer.pad_id, token_budget, advance
    )
    texts = completion_texts(model, list(completions.values()), detokenizer, token_budget, advance)
    probabilities = class_log_probabilities(
        model, list(classes.values()), detokenizer.pad_id, token_budget, advance
    )
    found |= zip(continuations, likelihoods, strict=True)
    found |= zip(completions, texts, strict=True)
    found |= zip(classes, probabilities, strict=True)
    return found


def _fits(request: Request, model: PreTrainedModel) -> bool:
    """Return whether all tokens that are passed have positions; what comes last is only predicted."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    match request:
        case Continuation():
            length = len(request.context) + len(request.continuation) - 1
        case Completion():
            length = len(request.prompt) + request.max_new_tokens - 1
        case Classes():
            length = len(request.prompt)
    return limit is None or length <= limit


def _of_kind(kind: type[Kind], requests: dict[int, Request]) -> dict[int, Kind]:
    return {number: request for number, request in requests.items() if isinstance(request, kind)}
