"""Logs what each of several tasks has had: its loss, and exactly how many rows and tokens so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankdrift.training.callbacks import Callback, Step, is_due

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Accounting(Callback):
    """Of a run of several tasks: a line ``train/<task>`` beside each line ``train``."""

    def __init__(self) -> None:
        self.rows = self.tokens = np.zeros(0, np.int64)

    def at_start(self, trainer: Trainer) -> None:
        """Take up what was counted before a resume, which is a function of the step alone."""
        data = trainer.data
        self.rows = data.order.seen(trainer.start)
        self.tokens = data.order.seen(trainer.start, data.lengths)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Count the step, and log it if it is time to; a task that had no row in it has no loss to log."""
        data, training = trainer.data, trainer.training
        numbers = data.order.rows(step.number - 1)
        of_tasks, count = data.train.tasks_of(numbers), len(data.train.tasks)
        rows, terms, tokens = (
            np.bincount(of_tasks, weights=values, minlength=count).astype(np.int64)
            for values in (None, data.terms[numbers], data.lengths[numbers])
        )
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        if count == 1 or not trainer.journal or not is_due(step.number, training.log_every, training.steps):
            return
        for number, task in enumerate(data.train.tasks):
            if rows[number]:
                values = {
                    "loss": float(step.of_tasks[number] / terms[number]),
                    "tokens": int(self.tokens[number]),
                    "rows": int(self.rows[number]),
                }
                trainer.journal.record(step.number, f"train/{task}", values)
