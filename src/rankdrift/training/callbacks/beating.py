"""Counts what a rank has done, for those who watch that it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankdrift.heartbeat.rank import Pulse
from rankdrift.training.callbacks import Callback

if TYPE_CHECKING:
    from rankdrift.data.tokens import Row
    from rankdrift.training.trainer import Trainer


class Beating(Callback):
    """A counter of the parts of steps.

    Parts may not last for ever, but in the first step of a start, which may compile. Evaluations and saves,
    which may be long, are between the steps.
    """

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.step = 0
        self.limited = False

    def at_start(self, trainer: Trainer) -> None:
        """Say what is done already."""
        self.step = trainer.start
        self.pulse.step_is_done(self.step)

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Count the beginning of a step."""
        self.step, self.limited = step, step > trainer.start + 1
        self.pulse.count(self.limited)

    def before_micro_batch(self, trainer: Trainer, rows: list[Row]) -> None:
        """Count a micro-batch."""
        self.pulse.count(self.limited)

    def before_update(self, trainer: Trainer, step: int) -> float:
        """Count the micro-batches' end."""
        self.pulse.count(self.limited)
        return 0.0

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Count the step's end."""
        self.pulse.step_is_done(self.step)
