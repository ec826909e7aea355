"""How far a step moves the weights, over their size: the update-to-weight ratio.

The update is what AdamW's rule gives for the moments as they are after the step, from this rank's fp32
masters and moments, so that no copy of the weights before it has to be kept, and no digit of a small update
is lost in the difference of two large numbers. Weight decay is part of it; what a method makes zero behind it
(AdaLoRA's lambda) is not counted. The weights are those after it: LoRA's B is zero before its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankdrift.training.collectives import device, to_device
from rankdrift.training.engine import MasterShard
from rankdrift.training.probes import Columns, Probe, Sums
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import portions, row_squares

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


def update_squares(shards: Sequence[MasterShard]) -> Tensor:
    """Return the squares of shards' last updates, and of the weights after them, fp64, (shards, 2)."""
    found = torch.zeros(len(shards), 2, dtype=torch.float64, device=shards[0].weights.device)
    rules = _rules(shards)
    decays = any(shard.rate * shard.weight_decay for shard in shards)
    vectors = zip(*((shard.weights, _moved_by(shard), shard.second) for shard in shards), strict=True)
    for owners, (weights, first, second) in portions(*vectors):
        size, root, epsilon, decay = rules[:, owners, None]
        step = second.sqrt().div_(root).add_(epsilon)
        torch.div(first, step, out=step).mul_(size)
        if decays:  # which is of the weights before the update
            step.addcmul_(weights + step, decay)
        found.index_add_(0, owners, torch.stack([row_squares(step), row_squares(weights)], dim=1))
    return found


def _rules(shards: Sequence[MasterShard]) -> Tensor:
    """Return what AdamW's rule has beside moments: size, root, epsilon and decay, fp32, (4, shards)."""
    options = [(s.rate, *s.betas, s.epsilon, s.rate * s.weight_decay) for s in shards]
    rate, beta1, beta2, epsilon, decay = to_device(torch.tensor(options, dtype=torch.float64)).T
    updates = torch.stack([_updates(shard) for shard in shards]).to(rate)
    size, root = rate / (1 - beta1**updates), (1 - beta2**updates).sqrt()
    return torch.stack([size, root, epsilon, decay / (1 - decay)]).to(shards[0].weights)


def _moved_by(shard: MasterShard) -> Tensor:
    """Return first moments, zero of what the update made zero: AdamW's step is not what that did."""
    return shard.first if shard.left is None else shard.first * shard.left


def _updates(shard: MasterShard) -> Tensor:
    assert shard.updates is not None, "a shard has moments once it has been updated"
    return shard.updates.reshape(())


class Updates(Probe):
    """Squares of updates and weights of whatever trains in the step."""

    name = "updates"

    @staticmethod
    def applies(trainer: Trainer) -> bool:
        """Return whether masters and moments are in memory."""
        return trainer.engine.keeps_state

    def after_update(self) -> Sums:
        """Return the squares of updates and weights, fp64, shape (parameters, 2)."""
        active = [name for name, _ in self.trainer.engine.active]
        numbers = {name: number for number, name in enumerate(active)}
        own = torch.zeros(len(active), 2, dtype=torch.float64, device=device())
        shards = [
            shard
            for shard in self.trainer.engine.master_shards()
            if shard.name in numbers and len(shard.weights) and shard.updates is not None
        ]
        if shards:
            rows = to_device(torch.tensor([numbers[shard.name] for shard in shards]))
            own.index_add_(0, rows, update_squares(shards).to(own.device))
        return Sums(own, partial(_table, Levels.of(tuple(active), single=True)), _scalars)


def _ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(sums[..., 0] / sums[..., 1])


def _table(levels: Levels, totals: np.ndarray) -> Columns:
    sums = levels.sums(totals)
    norms = np.sqrt(sums)
    found = {"update_norm": norms[:, 0], "weight_norm": norms[:, 1], "ratio": _ratio(sums)}
    return {**levels.columns, **found}


def _scalars(totals: np.ndarray) -> dict[str, float]:
    return {"update_to_weight": float(_ratio(totals.sum(axis=0)))}


PROBE = Updates
