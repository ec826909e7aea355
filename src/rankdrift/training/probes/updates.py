"""How far a step moves the weights, over their size: the update-to-weight ratio.

The update is what AdamW's rule gives for the moments as they are after the step, from this rank's fp32
masters and moments, so that no copy of the weights before it has to be kept, and no digit of a small update
is lost in the difference of two large numbers. Weight decay is part of it. The weights are those after it:
LoRA's B is zero before its first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankdrift.training.engine import MasterShard, device
from rankdrift.training.probes import Probe, Sums
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import chunks, squares

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


def update_squares(shard: MasterShard) -> Tensor:
    """Return the squares of a shard's last update, and of its weights after it, fp64, shape (2,)."""
    assert shard.updates is not None, "a shard has moments once it has been updated"
    rate, decay, (beta1, beta2) = shard.rate, shard.rate * shard.weight_decay, shard.betas
    size = rate / (1 - beta1**shard.updates)
    root = (1 - beta2**shard.updates) ** 0.5
    sums = []
    for weights, first, second in chunks(shard.weights, shard.first, shard.second):
        step = second.sqrt().div_(root).add_(shard.epsilon)
        torch.div(first, step, out=step).mul_(size)
        if decay:  # which is of the weights before the update
            step.add_((weights + step).div_(1 - decay), alpha=decay)
        sums.append(torch.stack([squares(step), squares(weights)]))
    return torch.stack(sums).sum(dim=0)


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
        for shard in self.trainer.engine.master_shards():
            if shard.name in numbers and len(shard.weights) and shard.updates is not None:
                own[numbers[shard.name]] = update_squares(shard)
        return Sums(own, partial(_table, Levels.of(tuple(active), single=True)), _scalars)


def _ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(sums[..., 0] / sums[..., 1])


def _table(levels: Levels, totals: np.ndarray) -> pd.DataFrame:
    sums = levels.sums(totals)
    norms = np.sqrt(sums)
    return levels.index.assign(update_norm=norms[:, 0], weight_norm=norms[:, 1], ratio=_ratio(sums))


def _scalars(totals: np.ndarray) -> dict[str, float]:
    return {"update_to_weight": float(_ratio(totals.sum(axis=0)))}


PROBE = Updates
