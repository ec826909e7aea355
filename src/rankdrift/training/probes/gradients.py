"""Gradient statistics per parameter, layer and group, the same at every ZeRO stage and number of ranks.

Each rank adds up what it holds of every gradient, the sums of all ranks are one vector, and the statistics of
any parameter, cell, layer, group or of the whole model follow from it. The gradient is that of the mean loss
over the global batch, before clipping.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankdrift.training.engine import device
from rankdrift.training.probes import Probe, Sums
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import chunks, squares

SQUARES, ABSOLUTES, VALUES, ZEROS = range(4)


def shard_sums(values: Tensor) -> Tensor:
    """Return [sum g², sum |g|, sum g, count of g = 0] of a flat shard, fp64, shape (4,)."""
    parts = [
        torch.stack(
            [
                squares(part),
                part.abs().sum().double(),
                part.sum().double(),
                (part.numel() - torch.count_nonzero(part)).double(),
            ]
        )
        for (part,) in chunks(values)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


class Gradients(Probe):
    """Sums of every gradient's elements."""

    name = "gradients"

    def before_update(self) -> Sums:
        """Return the sums, fp64, shape (parameters, 4)."""
        shards = list(self.trainer.engine.gradient_shards())
        nothing = torch.zeros(4, dtype=torch.float64, device=device())
        own = [nothing if shard.values is None else shard_sums(shard.values).to(device()) for shard in shards]
        levels = Levels.of(tuple(shard.name for shard in shards), single=True)
        numels = np.array([shard.numel for shard in shards])
        return Sums(torch.stack(own), partial(_statistics, levels, numels))


def _statistics(levels: Levels, numels: np.ndarray, totals: np.ndarray) -> pd.DataFrame:
    sums, count = levels.sums(totals), levels.sums(numels)
    mean = sums[:, VALUES] / count
    # rounding can leave a tiny negative
    variance = np.maximum(sums[:, SQUARES] / count - mean**2, 0.0)
    return levels.index.assign(
        numel=count,
        l2_norm=np.sqrt(sums[:, SQUARES]),
        mean_abs=sums[:, ABSOLUTES] / count,
        std=np.sqrt(variance),
        zero_fraction=sums[:, ZEROS] / count,
    )


PROBE = Gradients
