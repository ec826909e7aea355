"""Says how much of the hardware a step makes use of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step
from rankdrift.training.flops import ModelFlops, model_flops
from rankdrift.training.matmul_peak import matmul_flops_per_second

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Utilisation(Callback):
    """``teraflops`` a second over all ranks, by formula, and ``mfu``, their share of a measured peak."""

    def __init__(self) -> None:
        self.flops: ModelFlops | None = None
        self.peak = 0.0

    def at_start(self, trainer: Trainer) -> None:
        """Count what the model multiplies; measure the peak, of all ranks at once."""
        self.flops = model_flops(trainer.engine.module)
        collectives.barrier()
        own = matmul_flops_per_second(collectives.device(), next(trainer.engine.module.parameters()).dtype)
        self.peak = float(collectives.sum_over_ranks(torch.tensor(own, dtype=torch.float64)))

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Add both to the log's line."""
        assert self.flops is not None
        rows = trainer.data.order.rows(step.number - 1)
        of_step = self.flops.of_rows(trainer.data.lengths[rows], trainer.targets(step.number))
        rate = of_step / step.speed["seconds"]
        step.speed |= {"teraflops": rate / 1e12, "mfu": rate / self.peak}
