"""Logs every step, and at the end what the run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.training.callbacks import Callback, Step, is_due
from rankdrift.training.forecast import add_measured, stored_bytes
from rankdrift.training.memory import peak_resident

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Recording(Callback):
    """What rank 0 writes of steps into the run's journal."""

    def __init__(self) -> None:
        self.memory = 0.0

    def tell(self, trainer: Trainer) -> float:
        """Tell this rank's peak of memory, GiB: of the GPU's tensors, or of the process on a CPU."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
        return peak_resident() / 2**30

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Keep the largest."""
        self.memory = float(values.max())

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Log the step."""
        if journal := trainer.journal:
            journal.progress(step.number, step.values["loss"])
            if is_due(step.number, trainer.training.log_every, trainer.training.steps):
                values = {**step.values, **step.speed, **trainer.between, "memory_gib": self.memory}
                trainer.between.clear()
                journal.metrics(step.number, "train", values)
                journal.progressed(step.number)

    def at_end(self, trainer: Trainer) -> None:
        """Close the journal and say that the run is finished, and what it took."""
        if journal := trainer.journal:
            if self.memory:  # a run that was done already has taken nothing
                took = {"memory_gib": self.memory, "checkpoint": stored_bytes(trainer.run)}
                add_measured(trainer.run, step=trainer.last, **took)
            journal.close()
            journal.status(
                "finished",
                trainer.last,
                trainable_parameters=trainer.engine.trained,
                parameters=trainer.engine.parameter_count,
                training_seconds=_training_seconds(trainer.run),
            )


def _training_seconds(run: RunLayout) -> float:
    """Return the wall time of all logged steps, those before a resume included; without saves and scores."""
    return float(sum(row.get("seconds", 0.0) for row in files.read_jsonl(run.metrics)))
