"""Gradient statistics per parameter, layer and group, the same at every ZeRO stage and number of ranks.

Each rank adds up what it holds of every gradient, the sums of all ranks are one vector, and the statistics of
any parameter, cell, layer, group or of the whole model follow from it. The gradient is that of the mean loss
over the global batch, before clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rankdrift.training.collectives import device, to_device
from rankdrift.training.probes import Columns, Probe, Sums
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import portions, row_squares

SQUARES, ABSOLUTES, VALUES, ZEROS = range(4)


def shard_sums(shards: Sequence[Tensor]) -> Tensor:
    """Return [sum g², sum |g|, sum g, count of g = 0] of flat shards, fp64, shape (shards, 4)."""
    numels = torch.tensor([shard.numel() for shard in shards], dtype=torch.float64)
    found = torch.zeros(len(shards), 4, dtype=torch.float64, device=shards[0].device)
    found[:, ZEROS] = numels
    for owners, (rows,) in portions(shards):
        values = rows if rows.dtype == torch.float64 else rows.float()
        between = values.abs()
        absolutes = between.sum(dim=1)
        # counting takes ten times as long as adding up ones does
        others = torch.ne(values, 0, out=between).sum(dim=1)
        sums = [row_squares(values), absolutes.double(), values.sum(dim=1).double(), -others.double()]
        found.index_add_(0, owners, torch.stack(sums, dim=1))
    return found


class Gradients(Probe):
    """Sums of every gradient's elements."""

    name = "gradients"

    def before_update(self) -> Sums:
        """Return the sums, fp64, shape (parameters, 4)."""
        shards = list(self.trainer.engine.gradient_shards())
        own = torch.zeros(len(shards), 4, dtype=torch.float64, device=device())
        held = {number: s.values for number, s in enumerate(shards) if s.values is not None}
        if held:  # offloaded gradients lie on the CPU
            sums = shard_sums([*held.values()]).to(own.device)
            own.index_add_(0, to_device(torch.tensor([*held])), sums)
        levels = Levels.of(tuple(shard.name for shard in shards), single=True)
        numels = np.array([shard.numel for shard in shards])
        return Sums(own, partial(_statistics, levels, numels))


def _statistics(levels: Levels, numels: np.ndarray, totals: np.ndarray) -> Columns:
    sums, count = levels.sums(totals), levels.sums(numels)
    mean = sums[:, VALUES] / count
    # rounding can leave a tiny negative
    variance = np.maximum(sums[:, SQUARES] / count - mean**2, 0.0)
    return {
        **levels.columns,
        "numel": count,
        "l2_norm": np.sqrt(sums[:, SQUARES]),
        "mean_abs": sums[:, ABSOLUTES] / count,
        "std": np.sqrt(variance),
        "zero_fraction": sums[:, ZEROS] / count,
    }


PROBE = Gradients
