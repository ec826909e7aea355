"""Takes the validation loss of every task; their mean decides what the best model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rankdrift.data.token_table import TokenTable
from rankdrift.training import engine
from rankdrift.training.callbacks import Callback, Step, is_due

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Evaluation(Callback):
    """The validation loss, at step 0 and every ``training.eval_every`` steps."""

    def at_start(self, trainer: Trainer) -> None:
        """Evaluate the base model."""
        if trainer.start == 0:
            self.evaluate(trainer, 0)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Evaluate if it is time to."""
        training = trainer.training
        if is_due(step.number, training.eval_every or training.save_every, training.steps):
            self.evaluate(trainer, step.number)

    def evaluate(self, trainer: Trainer, step: int) -> None:
        """Log the loss of every task, and their mean."""
        losses = {table.task: self._loss(trainer, table) for table in trainer.data.validation.tables}
        trainer.exchange()  # a request may have come meanwhile
        if trainer.journal:
            for task, loss in losses.items():
                trainer.journal.metrics(step, f"validation/{task}", {"loss": loss})
            trainer.journal.metrics(step, "validation", {"loss": sum(losses.values()) / len(losses)})

    def _loss(self, trainer: Trainer, table: TokenTable) -> float:
        """Return a task's mean loss; every rank passes the same number of batches, as ZeRO-3 needs."""
        trainer.engine.deepspeed.eval()
        rows, size = table[: trainer.training.eval_rows], trainer.setup.plan.micro_batch
        share = -(-len(rows) // (engine.world_size() * size)) * size
        mine = rows[engine.rank() * share : (engine.rank() + 1) * share]
        loss_sum = 0.0
        with torch.no_grad():
            for first in range(0, share, size):
                batch = mine[first : first + size]
                # a rank that has no rows left passes the first one again and leaves it out of the sum
                loss = float(trainer.loss.of_all(batch or rows[:1]))
                loss_sum += loss if batch else 0.0
        total = engine.sum_over_ranks(torch.tensor(loss_sum, dtype=torch.float64))
        return float(total) / sum(map(trainer.loss.targets, rows))
