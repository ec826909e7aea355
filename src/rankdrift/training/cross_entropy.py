"""Cross-entropy that makes nothing as large as the logits but their gradient, in their own dtype.

``torch.nn.functional.cross_entropy`` keeps log-probabilities of the logits' size for the backward pass, in
fp32 those of bf16 logits: of 16,384 targets and a vocabulary of 128,000 they take 8 GB. Here the forward pass
keeps one number a target, and both passes take a few targets at a time to fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that are in fp32 at once: 64 MiB."""


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each target's negative log-likelihood.

    Parameters
    ----------
    logits
        Shape (targets, classes); half precision is widened chunk by chunk.
    targets
        Shape (targets,), int64: classes.

    Returns
    -------
    Tensor
        Shape (targets,), nats; fp32, or the logits' own dtype where that is wider.

    """
    losses: Tensor = _CrossEntropies.apply(logits, targets)
    return losses


class _CrossEntropies(torch.autograd.Function):
    """-log softmax(logits)[target]; its derivative is softmax(logits) less one at the target."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        normalisers = torch.cat([_wide(logits[part]).logsumexp(dim=1) for part in _chunks(logits)])
        ctx.save_for_backward(logits, targets, normalisers)
        return normalisers - _wide(logits.gather(1, targets[:, None])[:, 0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalisers = ctx.saved_tensors
        (weights,) = upstream
        gradient = torch.empty_like(logits)
        for part in _chunks(logits):
            own = (_wide(logits[part]) - normalisers[part, None]).exp_()
            own.scatter_add_(1, targets[part, None], own.new_full((len(own), 1), -1.0))
            gradient[part] = own.mul_(weights[part, None])
        return gradient, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Yield the parts to take at once; one that is empty where there are no targets."""
    size = max(1, CHUNK_ELEMENTS // logits.shape[1])
    for first in range(0, max(1, len(logits)), size):
        yield slice(first, first + size)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
