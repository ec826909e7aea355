"""The noise of the gradient, from the micro-batches of a step: no pass is made for it (arXiv 1812.06162).

A gradient of a mean over targets is a ratio, g = sum_k s_k / sum_k t_k, over micro-batches of all ranks with
sums s_k over t_k targets. With the linearised error e_k = s_k - t_k g of each (Cochran, Sampling Techniques,
1977, chapter 6), whose variance grows with t_k, analysis of variance of K micro-batches gives

    S = (sum_k |s_k|² / t_k - T |g|²) / (K - 1),    |G|² = |g|² - S / T,    T = sum_k t_k,

the trace of the covariance of one target's gradient, and the gradient's square without its noise: only norms
are needed. The simple noise scale is S / |G|² targets. A single step's |G|² may be negative: means over steps
are taken before the ratio is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankdrift.data.tokens import Row
from rankdrift.training import collectives
from rankdrift.training.probes import Columns, Probe, Sums
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes._sums import CHUNK, squares_of
from rankdrift.training.probes.conflict import compares_tasks

if TYPE_CHECKING:
    from rankdrift.training.engine import GradientShard
    from rankdrift.training.trainer import Trainer

Array = np.ndarray | float


class Noise(Probe):
    """Squares of every micro-batch's gradient, beside those of their mean."""

    name = "noise"

    @staticmethod
    def applies(trainer: Trainer) -> bool:
        """Return whether rows are in micro-batches by chance: those of one task each differ by their task."""
        return not compares_tasks(trainer)

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.targets: list[int] = []
        """Of each of this rank's micro-batches."""
        self.weighted = torch.zeros(0)
        """Of each parameter, the squares of its gradients over their micro-batches' targets, fp64."""
        self.seen: list[tuple[int, Tensor]] = []
        """Parameter and gradient, of the micro-batch under way, not yet added: up to ``CHUNK`` elements."""
        self.held = 0
        self.watch = contextlib.ExitStack()
        self.course = np.zeros(2)
        """Sums over the steps measured so far of S and |G|²."""

    def before_forward(self) -> None:
        """Look at the gradients of this step's micro-batches."""
        self.targets.clear()
        parameters = len(self.trainer.engine.active)
        self.weighted = torch.zeros(parameters, dtype=torch.float64, device=collectives.device())
        self.watch = self.trainer.engine.watch_gradients(self._see)

    def before_micro_batch(self, rows: list[Row]) -> None:
        """Note how many targets the next gradients are of."""
        self._add_seen()
        self.targets.append(sum(map(self.trainer.loss.targets, rows)))

    def _see(self, number: int, gradient: Tensor) -> None:
        self.seen.append((number, gradient.reshape(-1)))
        self.held += gradient.numel()
        if self.held >= CHUNK:
            self._add_seen()

    def _add_seen(self) -> None:
        if not self.seen:
            return
        numbers, gradients = zip(*self.seen, strict=True)
        self.seen, self.held = [], 0
        # a micro-batch's loss is its share of the step's, times the ranks, over which gradients are averaged
        weight = 1 / (max(self.targets[-1], 1) * collectives.world_size() ** 2)
        rows = collectives.to_device(torch.tensor(numbers))
        self.weighted.index_add_(0, rows, squares_of(gradients), alpha=weight)

    def before_update(self) -> Sums:
        """Return sum_k |s_k|² / t_k / T² and |g|² of every parameter; in a last row K and T."""
        self.watch.close()
        self._add_seen()
        shards = list(self.trainer.engine.gradient_shards())
        own = torch.stack([self.weighted, self._observed(shards)], dim=1)
        terms = torch.tensor([[np.count_nonzero(self.targets), sum(self.targets)]], dtype=torch.float64)
        levels = Levels.of(tuple(shard.name for shard in shards))
        return Sums(torch.cat([own, collectives.to_device(terms)]), partial(_table, levels), self._scalars)

    def _observed(self, shards: Sequence[GradientShard]) -> Tensor:
        found = torch.zeros_like(self.weighted)
        held = {number: s.values for number, s in enumerate(shards) if s.values is not None}
        if held:  # offloaded gradients lie on the CPU
            rows = collectives.to_device(torch.tensor([*held]))
            found.index_add_(0, rows, squares_of([*held.values()]).to(found.device))
        return found

    def _scalars(self, totals: np.ndarray) -> dict[str, float]:
        trace, square = estimates(*totals[:-1].sum(axis=0), *totals[-1])
        self.course += np.nan_to_num([trace, square])
        return {"targets": self.course[0] / self.course[1]} if self.course[1] > 0 else {}


def estimates(weighted: Array, observed: Array, batches: float, targets: float) -> tuple[Array, Array]:
    """Return S and |G|², NaN where a step has one micro-batch.

    Parameters
    ----------
    weighted
        sum_k |s_k|² / t_k / T², with gradients of sums over targets.
    observed
        |g|².
    batches, targets
        K and T.

    """
    trace = targets * (targets * weighted - observed) / (batches - 1) if batches > 1 else observed * np.nan
    return trace, observed - trace / targets


def _table(levels: Levels, totals: np.ndarray) -> Columns:
    batches, targets = totals[-1]
    weighted, observed = levels.sums(totals[:-1]).T
    trace, square = estimates(weighted, observed, batches, targets)
    return {
        **levels.columns,
        "micro_batches": int(batches),
        "targets": int(targets),
        "observed_square": observed,
        "gradient_square": square,
        "noise_trace": trace,
    }


PROBE = Noise
