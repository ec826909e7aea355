"""Keeps the most that a rank has had in use, to stand beside what was foretold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rankdrift.training.callbacks import Callback
from rankdrift.training.forecast import add_measured
from rankdrift.training.in_use import Watch

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Occupancy(Callback):
    """Of a CPU rank what ``watch`` has seen; of a GPU what its tensors take."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.most = 0.0

    def tell(self, trainer: Trainer) -> float:
        """Tell this rank's most so far, GiB; 0 where nobody counts it."""
        most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.watch.peak
        return (most or 0) / 2**30

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Keep the largest, if every rank knows."""
        self.most = float(values.max()) if values.all() else 0.0

    def at_end(self, trainer: Trainer) -> None:
        """Say what the run came to."""
        if trainer.journal and self.most:
            add_measured(trainer.run, in_use_gib=self.most)
