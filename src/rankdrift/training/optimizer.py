"""AdamW over groups of parameters of which some may rest.

A group is what DeepSpeed makes one flat vector of, at every stage, so a group that rests is a vector that is
left out of the update: its weights, its moments and its count of updates, by which Adam corrects their bias,
stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankdrift.spec import TrainingSpec
from rankdrift.zero_checkpoint.load_state import start_adam

Parameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimizer treats alike at every step."""

    parameters: Parameters
    rate: float
    """Times the learning rate."""
    decays: bool
    """Whether weight decay applies."""
    phases: tuple[bool, ...]
    """In which phases of the run it trains."""


def parameter_groups(
    parameters: Parameters,
    rate: Callable[[str], float],
    decays: bool,
    trains: Callable[[str], tuple[bool, ...]],
) -> list[ParameterGroup]:
    """Put together what is treated alike, in the order in which its first parameter comes.

    Parameters
    ----------
    parameters
        Those that train in some phase.
    rate
        Name -> factor of the learning rate.
    decays
        Whether there is weight decay at all: then vectors (norms, biases), which have none, are apart.
    trains
        Name -> in which phases it trains.

    """
    groups: dict[tuple[Any, ...], list[tuple[str, nn.Parameter]]] = {}
    for name, param in parameters:
        key = (trains(name), rate(name), decays and param.ndim > 1)
        groups.setdefault(key, []).append((name, param))
    # matrices first, as checkpoints have always had them
    ordered = sorted(groups.items(), key=lambda item: not item[0][2])
    return [ParameterGroup(own, factor, decaying, phases) for (phases, factor, decaying), own in ordered]


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, which updates the groups alone that are ``active``.

    It is given names, which a checkpoint without ZeRO stores nowhere else.
    """

    def __init__(self, groups: Iterable[ParameterGroup], training: TrainingSpec) -> None:
        options = [
            {
                "params": list(group.parameters),
                "weight_decay": training.weight_decay if group.decays else 0.0,
                "rate": group.rate,
                "phases": list(group.phases),
                "active": True,
                "updates": 0,
            }
            for group in groups
        ]
        betas = (training.beta1, training.beta2)
        self.masks: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Runs of the vectors, and which of their elements an update leaves; the others become zero."""
        super().__init__(options, lr=training.learning_rate, betas=betas, eps=training.epsilon, fused=True)

    def step(self, closure: Any = None) -> Any:
        """Update the active groups; the others get the state that a checkpoint has of every vector."""
        every = self.param_groups
        for group in every:
            for vector in group["params"]:
                if not group["active"] and not self.state.get(vector):  # DeepSpeed asks, and leaves {}
                    start_adam(self, vector, 0)
        self.param_groups = [group for group in every if group["active"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every
            for values, kept in self.masks:
                values.mul_(kept)
