"""Gradient statistics per layer and per group, exact, the same at every ZeRO stage and number of ranks.

Each rank adds up what it holds of every gradient in fp64, one vector is summed over the ranks, and the
statistics of any cell, layer, group or of the whole model follow from the sums. The gradient is that of
the mean loss over the global batch, before clipping.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankdrift.training.engine import Engine, device, sum_over_ranks
from rankdrift.training.probes import Probe

LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")
FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])\b")
SQUARES, ABSOLUTES, VALUES, ZEROS = range(4)
NO_LAYER = -1


@dataclass(frozen=True)
class Cell:
    """The finest grain: a layer, a group of modules, a LoRA factor."""

    layer: int
    """Index of the block; -1 outside the blocks."""
    group: str
    """attention, mlp, embed, norm or head."""
    factor: str
    """A or B for LoRA factors, empty otherwise."""


def cell_of(name: str) -> Cell:
    """Return the cell of a parameter by its name in the module tree."""
    layer, factor = LAYER.search(name), FACTOR.search(name)
    return Cell(
        layer=int(layer.group(1)) if layer else NO_LAYER,
        group=_group_of(name),
        factor=factor.group(1) if factor else "",
    )


def _group_of(name: str) -> str:
    parts = set(name.split("."))
    # norms first: "post_attention_layernorm" is a norm, and so is GPT-2's "ln_1"
    if "norm" in name.lower() or any(part.startswith("ln_") for part in parts):
        return "norm"
    if "embed" in name or parts & {"wte", "wpe"}:
        return "embed"
    if parts & {"lm_head", "score", "classifier"}:
        return "head"
    return "attention" if "attn" in name or "attention" in name else "mlp"


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
    members: dict[tuple[str, Cell], list[int]] = defaultdict(list)
    for number, cell in enumerate(cells):
        members["cell", cell].append(number)
        if cell.layer != NO_LAYER:
            members["layer", Cell(cell.layer, "", cell.factor)].append(number)
        members["group", Cell(NO_LAYER, cell.group, cell.factor)].append(number)
        members["global", Cell(NO_LAYER, "", "")].append(number)
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
