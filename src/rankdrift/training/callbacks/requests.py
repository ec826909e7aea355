"""Lets the ranks agree on what any of them was asked: by a signal, or by a file of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback
from rankdrift.training.stop_requests import Request, Requests, forget

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Asked(Callback):
    """What the run is asked; of several requests the largest counts."""

    def __init__(self, requests: Requests) -> None:
        self.requests, self.request = requests, Request.NONE

    def at_start(self, trainer: Trainer) -> None:
        """From here on there is something to save."""
        self.requests.at_step_ends = True

    def tell(self, trainer: Trainer) -> float:
        """Tell what this rank was asked; one of them looks for files."""
        return self.requests.take(trainer.run if collectives.rank() == 0 else None)

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Keep the largest request until it is done."""
        self.request = Request(max(self.request, int(values.max())))

    def done(self, trainer: Trainer) -> Request:
        """Forget what has been done, and return it."""
        done, self.request = self.request, Request.NONE
        if collectives.rank() == 0:
            forget(trainer.run, done)
        return done
