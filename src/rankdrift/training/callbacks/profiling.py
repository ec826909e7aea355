"""Writes traces of steps: what the host and the device did when (for Perfetto or chrome://tracing)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.profiler import profile

from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Profiling(Callback):
    """A trace of each step of ``training.profile`` and each rank; it makes the step slower."""

    def __init__(self) -> None:
        self.profiler: profile | None = None

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Begin if the step is to be traced."""
        if step in trainer.training.profile:
            self.profiler = profile()
            self.profiler.start()

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Write what was traced."""
        if self.profiler:
            self.profiler.stop()
            path = trainer.run.trace(step.number, collectives.rank())
            path.parent.mkdir(exist_ok=True)
            self.profiler.export_chrome_trace(str(path))
            self.profiler = None
