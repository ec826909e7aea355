"""Takes rank away from modules that need it less, as AdaLoRA does (``training/rank_budget.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankdrift.training.callbacks import Callback
from rankdrift.training.rank_budget import RankBudget

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer


class Allocation(Callback):
    """The budget of a run whose method allocates; its state goes with the checkpoints."""

    def at_start(self, trainer: Trainer) -> None:
        """Take up what the checkpoint has of it."""
        setup, under = trainer.setup, trainer.engine
        self.budget = None
        if setup.method.allocates:
            settings: Any = setup.spec.method
            self.budget = RankBudget(settings, trainer.training.steps, under.shapes, under.kept)

    def before_update(self, trainer: Trainer, step: int) -> float:
        """Look at the gradients, and say what the update is to leave at zero."""
        if self.budget:
            if self.budget.observes(step):
                self.budget.observe(trainer.engine.sensitivities())
            trainer.engine.leave(self.budget.kept(step) or {})
        return 0.0
