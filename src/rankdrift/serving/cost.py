"""What a forward pass of a served model must do and read, from the shapes of its matrices.

Of the matrices alone, without attention and activations: a floor, beside which what was measured stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn


@dataclass(frozen=True)
class Cost:
    """Of one forward pass."""

    flops: float
    """Floating-point operations, a multiplication and an addition being two."""
    bytes: float
    """Bytes of weights that are read."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def cost_of(model: Any, tokens: int, answered: int, adapters: tuple[str, ...] = ()) -> Cost:
    """Return what a pass of so many tokens costs, all rows together.

    Parameters
    ----------
    model
        A model, of PEFT's with the adapters beside the base weights.
    tokens
        Rows times positions.
    answered
        Positions that logits over the vocabulary are made of: the last one of each row.
    adapters
        Names of those that rows have; a row has one of them, and all of them are read.

    """
    total = Cost(0.0, 0.0)
    head = model.get_output_embeddings()
    for matrix in _matrices(model):
        times = answered if matrix is head else tokens
        total += Cost(
            2.0 * matrix.weight.numel() * times, matrix.weight.numel() * matrix.weight.element_size()
        )
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for number, name in enumerate(name for name in adapters if name in layer.lora_A):
            total += _of_adapter(layer, name, tokens if number == 0 else 0)
    return total


def _matrices(model: nn.Module) -> Iterator[Any]:
    """Yield the linear layers of a model but the adapters' own."""
    own = {
        id(part)
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for parts in (layer.lora_A, layer.lora_B)
        for part in parts.values()
    }
    yield from (
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in own
    )


def _of_adapter(layer: Any, name: str, tokens: int) -> Cost:
    """Return the cost of an adapter at one layer; of DoRA also that of the norms it takes anew each time."""
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    elements = down.numel() + up.numel()
    cost = Cost(2.0 * elements * tokens, elements * down.element_size())
    if layer.use_dora.get(name, False):
        matrix = up.shape[0] * down.shape[1]
        cost += Cost((2.0 * down.shape[0] + 4.0) * matrix, 3.0 * matrix * up.element_size())
    return cost
