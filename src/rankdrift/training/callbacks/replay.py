"""Compares the first step after an interruption with what was logged before it (``resume_check``)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from rankdrift.errors import IntegrityError
from rankdrift.training import collectives, resume_check
from rankdrift.training.callbacks import Callback, Step

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Replay(Callback):
    """The step that is expected, until it has been met."""

    def __init__(self) -> None:
        self.expected: resume_check.Expected | None = None
        self.noise = 0.0

    def at_start(self, trainer: Trainer) -> None:
        """Find what is expected, on every rank the same."""
        mine = None
        if collectives.rank() == 0:
            setup = trainer.setup
            mine = resume_check.expected(trainer.run, setup.conditions, setup.spec.method.is_random)
        self.expected = collectives.gather(mine)[0]

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Measure how far the loss of the expected step may be off by rounding.

        Without dropout, whose masks are alike. Every rank passes as many batches as the others, as ZeRO-3
        needs.
        """
        if not self.expected or self.expected.exact or step != self.expected.step:
            return
        micro_batches = trainer.micro_batches(step)
        trainer.engine.deepspeed.eval()
        with torch.no_grad():
            together = torch.cat([trainer.loss.of_each(rows) for rows in micro_batches])
            alone = torch.cat([trainer.loss.of_each([row]) for rows in micro_batches for row in rows])
        trainer.engine.deepspeed.train()
        own = torch.tensor(resume_check.rounding_noise(together, alone))
        self.noise = float(collectives.sum_over_ranks(own)) / trainer.targets(step)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Stop where the step is not the one that was logged."""
        if not self.expected or step.number != self.expected.step:
            return
        if difference := self.expected.difference(step.values, self.noise):
            raise IntegrityError(
                f"{trainer.run.root}: step {step.number} does not repeat: {difference}; the data, the "
                "code, the libraries or the machine have changed. To go on all the same, delete "
                f"{trainer.run.replay}"
            )
        logger.info("step %d is as it was before the interruption", step.number)
        self.expected = None
        if collectives.rank() == 0:
            resume_check.forget(trainer.run)
