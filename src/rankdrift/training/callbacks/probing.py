"""Runs the probes now and then: around the backward passes of a step, and behind its update."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from rankdrift import registry
from rankdrift.data.tokens import Row
from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step, is_due
from rankdrift.training.probes import Probe, Sums

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Probing(Callback):
    """All probes that apply to a run, every ``training.probe_every`` steps."""

    def __init__(self) -> None:
        self.probes: list[Probe] = []
        self.found: list[tuple[Probe, Sums]] = []
        """Of the step under way, not yet added up over the ranks."""
        self.measuring = False
        self.seconds = 0.0

    def at_start(self, trainer: Trainer) -> None:
        """Make the probes that apply."""
        if not trainer.training.probe_every:
            return
        for name in registry.names("probe"):
            kind: type[Probe] = registry.load("probe", name)
            if kind.applies(trainer):
                self.probes.append(kind(trainer))
            else:
                logger.info("the probe '%s' does not apply to this run", name)

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Let the probes look at what follows, if it is time to measure."""
        self.found.clear()
        self.seconds = 0.0
        self.measuring = is_due(step, trainer.training.probe_every, trainer.training.steps)
        for probe in self.probes if self.measuring else ():
            probe.before_forward()

    def before_micro_batch(self, trainer: Trainer, rows: list[Row]) -> None:
        """Let the probes know which rows are next."""
        for probe in self.probes if self.measuring else ():
            probe.before_micro_batch(rows)

    def before_update(self, trainer: Trainer, step: int) -> float:
        """Measure averaged gradients."""
        return self._measure(probe.before_update() for probe in self.probes) if self.measuring else 0.0

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Measure what the update has done, add all up over the ranks, and log the time it took."""
        if not self.measuring:
            return
        self._measure(probe.after_update() for probe in self.probes)
        began = time.perf_counter()
        self._tell(trainer, step.number)
        step.speed["seconds_probe"] = self.seconds + time.perf_counter() - began

    def _measure(self, found: Iterable[Sums | None]) -> float:
        """Keep what the probes find; return the seconds it took."""
        collectives.wait_for_device()  # or work of the step would count as the probes'
        began = time.perf_counter()
        measured = [*zip(self.probes, found, strict=True)]
        self.found += [(probe, sums) for probe, sums in measured if sums is not None]
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return seconds

    def _tell(self, trainer: Trainer, step: int) -> None:
        """Add up over the ranks, as one vector, and log the totals."""
        if not self.found:
            return
        flat = torch.cat([sums.own.flatten() for _, sums in self.found])
        totals = collectives.sum_over_ranks(flat).cpu().split([sums.own.numel() for _, sums in self.found])
        if trainer.journal:
            for (probe, sums), total in zip(self.found, totals, strict=True):
                values = total.view(sums.own.shape).numpy()
                trainer.journal.probe(probe.name, step, trainer.phase or 0, sums, values)
