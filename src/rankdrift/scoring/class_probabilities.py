"""Classes: the log-probability of each of a task's classes, by a classification head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankdrift.data.batches import padded
from rankdrift.models.direction import padding_side, pooled_at_the_end
from rankdrift.scoring.batches import batches_by_tokens
from rankdrift.tasks.kinds import Classes


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
        with pooled_at_the_end(model.config):
            logits = model(**batch, use_cache=False).logits.float().cpu()
        found |= {number: _of_task(requests[number], logits[row]) for row, number in enumerate(numbers)}
        advance(len(numbers))
    return [found[number] for number in range(len(requests))]


def _of_task(request: Classes, logits: Tensor) -> tuple[float, ...]:
    own = logits[request.first : request.first + request.count] if request.count else logits
    return tuple(own.log_softmax(-1).tolist())
