"""Classes: the log-probability of each of a task's classes, by a classification head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankdrift.data.batches import padded
from rankdrift.models.direction import padding_side
from rankdrift.scoring.batches import batches_by_tokens
from rankdrift.tasks.requests import Classes

NO_TOKEN = -1


@torch.no_grad()
def class_log_probabilities(
    model: PreTrainedModel,
    requests: Sequence[Classes],
    pad_id: int,
    token_budget: int,
    advance: Callable[[int], None] = lambda answered: None,
) -> list[tuple[float, ...]]:
    """Return log p(class | prompt), in nats, by log-softmax in fp32 over the classes of a request's task.

    Parameters
    ----------
    model
        A sequence classification model in evaluation mode.
    requests
        Prompts, none empty, and which of the head's classes count.
    pad_id
        Padding token; a prompt may hold it, or end in it.
    token_budget
        Rows x longest of a pass.
    advance
        Called with the number of requests answered by each batch.

    """
    found: dict[int, tuple[float, ...]] = {}
    side = padding_side(model.config)
    for numbers in batches_by_tokens([len(request.prompt) for request in requests], token_budget):
        batch = padded([requests[number].prompt for number in numbers], pad_id, side, model.device)
        with _pooled_at_the_end(model):
            logits = model(**batch, use_cache=False).logits.float().cpu()
        found |= {number: _of_task(requests[number], logits[row]) for row, number in enumerate(numbers)}
        advance(len(numbers))
    return [found[number] for number in range(len(requests))]


@contextmanager
def _pooled_at_the_end(model: PreTrainedModel) -> Iterator[None]:
    """Let a decoder's head read the last column, where every row that is padded on the left ends.

    transformers has it read the last token that is not ``pad_token_id``, which is another one where a prompt
    ends in that token. For as long as no token is the padding token it reads the last column. The heads of
    encoders, whose rows are padded on the right, read the first column whatever is set.
    """
    config = model.config.get_text_config()
    pad_id, config.pad_token_id = config.pad_token_id, NO_TOKEN
    try:
        yield
    finally:
        config.pad_token_id = pad_id


def _of_task(request: Classes, logits: Tensor) -> tuple[float, ...]:
    own = logits[request.first : request.first + request.count] if request.count else logits
    return tuple(own.log_softmax(-1).tolist())
