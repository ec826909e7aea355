"""Gradient statistics per layer and per group, exact, the same at every ZeRO stage and number of ranks.

Each rank adds up what it holds of every gradient in fp64, one vector is summed over the ranks, and the
statistics of any cell, layer, group or of the whole model follow from the sums. The gradient is that of
the mean loss over the global batch, before clipping.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rankdrift.models.families import Cell, Level, cell_of, levels_of
from rankdrift.training.engine import Engine, device, sum_over_ranks
from rankdrift.training.probes import Probe

SQUARES, ABSOLUTES, VALUES, ZEROS = range(4)


def shard_sums(values: Tensor) -> Tensor:
    """Return [sum g², sum |g|, sum g, count of g = 0] of a flat shard, fp64, shape (4,)."""
    return torch.stack(
        [
            torch.linalg.vector_norm(values, dtype=torch.float64) ** 2,
            torch.linalg.vector_norm(values, ord=1, dtype=torch.float64),
            values.sum(dtype=torch.float64),
            (values.numel() - torch.count_nonzero(values)).double(),
        ]
    )


def measure(engine: Engine) -> list[dict[str, Any]]:
    """Return one row a cell, a layer, a group (each with its factors apart) and one for the whole model."""
    shards = list(engine.gradient_shards())
    cells = sorted({cell_of(shard.name) for shard in shards}, key=lambda c: (c.layer, c.group, c.factor))
    index = {cell: number for number, cell in enumerate(cells)}
    sums = torch.zeros(len(cells), 4, dtype=torch.float64, device=device())
    numels = [0] * len(cells)
    for shard in shards:
        number = index[cell_of(shard.name)]
        numels[number] += shard.numel
        if shard.values is not None:
            sums[number] += shard_sums(shard.values)
    totals = sum_over_ranks(sums).cpu()  # the one transfer, and the one wait for the device
    return [
        {"level": level, "layer": cell.layer, "group": cell.group, "factor": cell.factor, **statistics}
        for level, cell, statistics in _aggregates(cells, numels, totals)
    ]


def _aggregates(
    cells: list[Cell], numels: list[int], totals: Tensor
) -> Iterator[tuple[str, Cell, dict[str, float]]]:
    members: dict[tuple[Level, Cell], list[int]] = defaultdict(list)
    for number, cell in enumerate(cells):
        for key in levels_of(cell):
            members[key].append(number)
    for (level, cell), numbers in members.items():
        count = sum(numels[number] for number in numbers)
        yield level, cell, _statistics(totals[numbers].sum(dim=0).tolist(), count)


def _statistics(sums: list[float], count: int) -> dict[str, float]:
    mean = sums[VALUES] / count
    variance = max(sums[SQUARES] / count - mean**2, 0.0)  # rounding can leave a tiny negative
    return {
        "numel": count,
        "l2_norm": math.sqrt(sums[SQUARES]),
        "mean_abs": sums[ABSOLUTES] / count,
        "std": math.sqrt(variance),
        "zero_fraction": sums[ZEROS] / count,
    }


PROBE = Probe(name="gradients", measure=measure)
