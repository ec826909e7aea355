"""Ends a run before its last step where no evaluation has been better for a while."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rankdrift import files
from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step
from rankdrift.training.callbacks.evaluation import is_evaluated
from rankdrift.training.selection import costs, is_exhausted

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Stopping(Callback):
    """Early stopping by ``training.best``, ``training.patience`` and ``training.min_delta``.

    It reads the run's log, so that a run that resumes counts what was evaluated before.
    """

    def at_start(self, trainer: Trainer) -> None:
        """End at once a run that is taken up where it had ended."""
        self._decide(trainer, trainer.start)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """End after a step whose evaluation was one too many."""
        if is_evaluated(trainer.training, step.number):
            self._decide(trainer, step.number)

    def _decide(self, trainer: Trainer, step: int) -> None:
        training = trainer.training
        if training.patience is None or step == 0:
            return
        own = False
        if trainer.journal:
            found = costs(files.read_jsonl(trainer.run.metrics), training.best)
            own = is_exhausted(found, training.patience, training.min_delta)
        if collectives.max_over_ranks(float(own)):
            logger.info(
                "no better %s in %d evaluations: step %d is the last", training.best, training.patience, step
            )
            trainer.last = step
