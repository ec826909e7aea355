"""How far the weights have come from the base, while they train.

Of whole weights the norm of W - W0, from this rank's fp32 masters and the base's mapped files. Of LoRA's
products B A, and AdaLoRA's, the whole spectrum, from cores of r x r. Spectra of whole weights' updates would
take longer than the steps between two measurements, and so would DoRA's, whose lengths make them of full rank
(m (W0 + s B A) / ||W0 + s B A|| - W0): the analysis of checkpoints has them.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankdrift.export.base_weights import BaseTensor
from rankdrift.models.families import MODULES, in_block, roles
from rankdrift.training import collectives
from rankdrift.training.probes import Columns, Probe, Sums
from rankdrift.training.probes._adapters import Adapter, adapters_of, spectra, whole_masters
from rankdrift.training.probes._base_weights import BaseWeights, part, size
from rankdrift.training.probes._levels import PARAMETER, Levels
from rankdrift.training.probes._sums import portions, row_squares, squares_of

if TYPE_CHECKING:
    from rankdrift.training.engine import MasterShard
    from rankdrift.training.trainer import Trainer

UPDATE, BASE, *_ = COLUMNS = range(6)
"""Squares of the norms of dW and W0; sigma_1 of both; stable and entropy rank of dW."""


class Drift(Probe):
    """Norms and spectra of updates."""

    name = "drift"

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        base, numels = BaseWeights(trainer), trainer.engine.numels
        found = {name: base.find(name, numel) for name, numel in numels.items() if ".lora_" not in name}
        self.whole = {name: stored for name, stored in found.items() if stored}
        """Parameter that trains whole -> the base's."""
        of_base = [(adapter, _adapted(base, adapter)) for adapter in adapters_of(trainer)]
        self.adapted = [(adapter, stored) for adapter, stored in of_base if stored]
        names = [stored.name for stored in chain(self.whole.values(), (s for _, s in self.adapted))]
        self.rows = {name: row for row, name in enumerate(names)}
        self.levels = Levels(names, single=True)
        self.sizes: dict[str, Tensor] = {}
        """Adapted matrix -> what this rank has computed of it, which stays as it is."""
        self.base: tuple[Tensor, list[Tensor], Tensor] | None = None

    @staticmethod
    def applies(trainer: Trainer) -> bool:
        """Return whether masters are in memory."""
        return trainer.engine.keeps_state

    def after_update(self) -> Sums | None:
        """Return ``COLUMNS`` of each matrix, fp64, shape (matrices, 6); spectra are one rank's each."""
        if not self.rows:
            return None
        own = torch.zeros(len(self.rows), len(COLUMNS), dtype=torch.float64, device=collectives.device())
        if self.whole:
            self._add_whole(own)
        if self.adapted:
            self._add_adapted(own)
        scalars, pictures = partial(_scalars, bool(self.adapted)), partial(_pictures, list(self.rows))
        return Sums(own, partial(_table, self.levels), scalars, pictures)

    def _add_whole(self, own: Tensor) -> None:
        """Put in the squares of this rank's parts of W - W0 and W0."""
        held = [s for s in self.trainer.engine.master_shards() if s.name in self.whole and len(s.weights)]
        if not held:
            return
        rows, parts, of_base = self._base_of(held)
        moved = torch.zeros_like(of_base)
        bases = (values.to(of_base.device) for values in parts)  # on a GPU never all of them at once
        for owners, (now, base) in portions((shard.weights for shard in held), bases):
            moved.index_add_(0, owners, row_squares(now - base))
        own[:, : BASE + 1].index_add_(0, rows, torch.stack([moved, of_base], dim=1).to(own.device))

    def _base_of(self, held: list[MasterShard]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return shards' rows, and of the base the same elements, mapped, and their squares; made once."""
        if self.base is None:
            stored = [self.whole[shard.name] for shard in held]
            rows = collectives.to_device(torch.tensor([self.rows[tensor.name] for tensor in stored]))
            parts = [part(t, shard.start, len(shard.weights)) for t, shard in zip(stored, held, strict=True)]
            of_base = torch.cat([squares_of([values.to(held[0].weights.device)]) for values in parts])
            self.base = rows, parts, of_base
        return self.base

    def _add_adapted(self, own: Tensor) -> None:
        """Put in the spectra of this rank's share of the adapters."""
        adapters = [adapter for adapter, _ in self.adapted]
        numels = {name: numel for adapter in adapters for name, numel in adapter.numels.items()}
        masters = whole_masters(self.trainer, numels)
        mine = slice(collectives.rank(), None, collectives.world_size())
        stored = {adapter.module: base for adapter, base in self.adapted[mine]}
        for group, sigma in spectra(adapters[mine], masters):
            names = [stored[adapter.module] for adapter in group]
            rows = torch.tensor([self.rows[base.name] for base in names], device=own.device)
            base = torch.stack([self._size(tensor) for tensor in names])
            own[rows] = _columns(sigma.double(), base)

    def _size(self, stored: BaseTensor) -> Tensor:
        if stored.name not in self.sizes:
            self.sizes[stored.name] = size(stored)
        return self.sizes[stored.name]


def _adapted(base: BaseWeights, adapter: Adapter) -> BaseTensor | None:
    (_, inputs), (outputs, _) = adapter.shapes
    return base.find(f"{adapter.module}.weight", inputs * outputs)


def _columns(sigma: Tensor, base: Tensor) -> Tensor:
    """Return ``COLUMNS`` by the values of dW, descending, (n, r), and W0's, (n, 2); ranks of 0 are 0."""
    tiny = torch.finfo(sigma.dtype).tiny
    energy, first = sigma.square().sum(dim=1), sigma[:, 0]
    shares = sigma / sigma.sum(dim=1, keepdim=True).clamp(min=tiny)
    entropy = torch.special.entr(shares).sum(dim=1).exp() * (first > 0)
    stable = energy / first.square().clamp(min=tiny)
    return torch.stack([energy, base[:, 0], first, base[:, 1], stable, entropy], dim=1)


def _table(levels: Levels, totals: np.ndarray) -> Columns:
    norms = np.sqrt(levels.sums(totals[:, : BASE + 1]))
    single = levels.columns["level"] == PARAMETER
    # of one matrix alone; where it trains whole none were taken
    of_one = np.where(single[:, None], levels.sums(totals[:, BASE + 1 :]), np.nan)
    of_one[of_one[:, 1] == 0] = np.nan
    return {
        **{title: values for title, values in levels.columns.items() if title != "factor"},
        "update_norm": norms[:, 0],
        "base_norm": norms[:, 1],
        "relative_update_norm": _over(norms[:, 0], norms[:, 1]),
        "sigma1_ratio": _over(of_one[:, 0], of_one[:, 1]),
        "stable_rank": of_one[:, 2],
        "entropy_rank": of_one[:, 3],
    }


def _over(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return first / second


def _scalars(spectra: bool, totals: np.ndarray) -> dict[str, float]:
    update, base = np.sqrt(totals[:, : BASE + 1].sum(axis=0))
    told = {"relative_update_norm": float(update / base)} if base else {}
    adapted = totals[totals[:, BASE + 2] > 0, BASE + 1 :]
    if spectra and len(adapted):
        stable, entropy = np.median(adapted[:, 2:], axis=0)
        told["sigma1_ratio_largest"] = float((adapted[:, 0] / adapted[:, 1]).max())
        told |= {"stable_rank_median": float(stable), "entropy_rank_median": float(entropy)}
    return told


def _pictures(names: list[str], totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return ||dW|| / ||W0|| by layer (rows, the first on top) and projection (columns), NaN of none."""
    places = [(in_block(name), roles(name.removesuffix(".weight"))) for name in names]
    found = [
        (block[0], MODULES.index(role[0]), row)
        for row, (block, role) in enumerate(places)
        if block and role and role[0] in MODULES
    ]
    if not found:
        return {}
    grid = np.full((1 + max(layer for layer, _, _ in found), len(MODULES)), np.nan)
    for layer, module, row in found:
        grid[layer, module] = np.sqrt(_over(totals[row, UPDATE], totals[row, BASE]))
    return {"relative_update_norm_by_layer_and_module": grid}


PROBE = Drift
