"""Measures the gradients now and then, between the last backward pass and the update."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rankdrift import registry
from rankdrift.training import engine
from rankdrift.training.callbacks import Callback, Step, is_due
from rankdrift.training.probes import Probe

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Probing(Callback):
    """All probes there are, every ``training.probe_every`` steps."""

    def __init__(self) -> None:
        self.probes: list[Probe] = [registry.load("probe", name) for name in registry.names("probe")]
        self.seconds = 0.0

    def before_update(self, trainer: Trainer, step: int) -> float:
        """Measure if it is time to."""
        self.seconds = 0.0
        if is_due(step, trainer.training.probe_every, trainer.training.steps):
            engine.wait_for_device()  # or the backward pass's work would count as the probes'
            began = time.perf_counter()
            for probe in self.probes:
                rows = probe.measure(trainer.engine)
                if trainer.journal:
                    phase = {"phase": trainer.phase or 0}
                    trainer.journal.probe(probe.name, step, [phase | row for row in rows])
            self.seconds = time.perf_counter() - began
        return self.seconds

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Log how long it took, apart from the step's seconds."""
        if self.seconds:
            step.speed["seconds_probe"] = self.seconds
