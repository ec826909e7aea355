"""Takes the validation loss of every task, whose mean decides what the best model is, and their metrics.

Metrics are those of scoring, by the same code, on the first validation items, whatever the ZeRO stage.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from rankdrift import registry
from rankdrift.data.token_table import TokenTable
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.items import TaskItems, task_items
from rankdrift.scoring.score import metric_values, outcomes_of
from rankdrift.scoring.shares import Shares
from rankdrift.spec import TrainingSpec
from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step, is_due

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

ZERO3 = 3


class Evaluation(Callback):
    """The validation loss, and metrics if asked for, at step 0 and every ``training.eval_every`` steps."""

    def __init__(self) -> None:
        self.items: list[TaskItems] = []

    def at_start(self, trainer: Trainer) -> None:
        """Read what is to be answered, and evaluate the base model."""
        if trainer.training.eval_items:
            self.items = _items(trainer)
        if trainer.start == 0:
            self.evaluate(trainer, 0)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Evaluate if it is time to."""
        if is_evaluated(trainer.training, step.number):
            with trainer.aside("evaluation"):
                self.evaluate(trainer, step.number)

    def evaluate(self, trainer: Trainer, step: int) -> None:
        """Log the loss and the metrics of every task, and the losses' mean."""
        with torch.compiler.set_stance("force_eager"):  # a cache would need code at every token
            metrics = {items.task.name: _metrics(trainer, items) for items in self.items}
            losses = {table.task: self._loss(trainer, table) for table in trainer.data.validation.tables}
        trainer.exchange()  # a request may have come meanwhile
        if trainer.journal:
            for task, loss in losses.items():
                trainer.journal.metrics(step, f"validation/{task}", {"loss": loss, **metrics.get(task, {})})
            trainer.journal.metrics(step, "validation", {"loss": sum(losses.values()) / len(losses)})

    def _loss(self, trainer: Trainer, table: TokenTable) -> float:
        """Return a task's mean loss; every rank passes the same number of batches, as ZeRO-3 needs."""
        trainer.engine.deepspeed.eval()
        rows = table[: trainer.training.eval_rows]
        size = min(trainer.rows_at_once, -(-len(rows) // collectives.world_size()))
        share = -(-len(rows) // (collectives.world_size() * size)) * size
        mine = rows[collectives.rank() * share : (collectives.rank() + 1) * share]
        loss_sum = 0.0
        with torch.no_grad():
            for first in range(0, share, size):
                batch = mine[first : first + size]
                # a rank that has no rows left passes the first one again and leaves it out of the sum
                loss = float(trainer.loss.of_all(batch or rows[:1]))
                loss_sum += loss if batch else 0.0
        total = collectives.sum_over_ranks(torch.tensor(loss_sum, dtype=torch.float64))
        return float(total) / sum(map(trainer.loss.targets, rows))


def is_evaluated(training: TrainingSpec, step: int) -> bool:
    """Return whether a step is evaluated."""
    every = training.eval_every or training.save_every
    return is_due(step, every, training.steps) or step in training.eval_steps


def _items(trainer: Trainer) -> list[TaskItems]:
    """Return the validation items of every trained task, cut as its training rows."""
    setup = trainer.setup
    scoring = setup.spec.scoring.model_copy(update={"limit": trainer.training.eval_items})
    spec = setup.spec.model_copy(update={"scoring": scoring})
    tasks = [registry.load("task", name) for name in spec.data.tasks]
    return [task_items(spec, task, "validation", setup.tokenizer, spec.data.max_length) for task in tasks]


def _metrics(trainer: Trainer, items: TaskItems) -> dict[str, float]:
    """Return a task's metrics; ranks share the items, in step where each holds a part of the model."""
    model = trainer.engine.deepspeed.module.eval()
    lockstep = trainer.engine.stage == ZERO3
    shares = Shares.of_group(lockstep) if collectives.world_size() > 1 else None
    budget = trainer.setup.spec.scoring.batch_tokens
    outcomes = outcomes_of(items, model, Detokenizer.of(trainer.setup.tokenizer), budget, shares)
    return {name: value for name, value in metric_values(items, outcomes).items() if math.isfinite(value)}
