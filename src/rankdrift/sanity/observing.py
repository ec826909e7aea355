"""Callbacks that see a small run from within: its losses, its gradients, what the trained model answers."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from rankdrift.data.batches import padded
from rankdrift.data.tokens import Row
from rankdrift.models.direction import pooled_at_the_end
from rankdrift.training import collectives, engine
from rankdrift.training.callbacks import Callback, Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankdrift.training.trainer import Trainer

LEARNT = 0.1
"""Loss, nats a target, at which rows are known by heart."""
LOOKED_AT = 2
"""Steps whose gradients are looked at: in the first, B = 0 makes those of A zero."""


class Enough(Exception):  # noqa: N818  # no error
    """A run has shown what it was to show."""


class Closing(Callback):
    """Lets go of a run's engine when the run is over, however it ended: the next one needs the memory."""

    def __init__(self) -> None:
        self.engine: engine.Engine | None = None

    def at_start(self, trainer: Trainer) -> None:
        """Note the engine."""
        self.engine = trainer.engine

    def close(self) -> None:
        """Close the engine, if the run came to have one."""
        if self.engine:
            self.engine.close()
        self.engine = None
        gc.collect()  # engines are cycles of references


class Losses(Callback):
    """Notes every step's loss; ends the run after some of them, unless they are None.

    Parameters
    ----------
    most
        Steps after which ``Enough`` is raised on every rank.

    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.losses: list[float] = []

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Note the loss."""
        self.losses.append(step.values["loss"])
        if len(self.losses) == self.most:
            if trainer.journal:
                trainer.journal.close()
            raise Enough


class Gradients(Callback):
    """Which parameters get a gradient in the first steps, and whether all of it is finite.

    Parameters
    ----------
    say
        Called on every rank with what is wrong (None: nothing) and what was seen, once it is known.

    """

    def __init__(self, say: Callable[[str | None, str], None]) -> None:
        self.say = say
        self.known = False
        self.wrong: str | None = None
        self.silent: set[str] = set()
        """Parameters that train and have had no gradient but zero yet."""

    def conclude(self, wrong: str | None, seen: str) -> None:
        """Say what came of it, if it has not been said."""
        if not self.known:
            self.known, self.wrong = True, wrong
            self.say(wrong, seen)

    def before_update(self, trainer: Trainer, step: int) -> float:
        """Look at the gradients of this step; return how long it took, seconds."""
        began = time.perf_counter()
        if step <= LOOKED_AT and not self.known:
            self._look(trainer, step)
        return time.perf_counter() - began

    def _look(self, trainer: Trainer, step: int) -> None:
        shards = list(trainer.engine.gradient_shards())
        active = [shard.name for shard in shards]
        self.silent = set(active) if step == 1 else self.silent
        own = torch.tensor([_measured(shard.values) for shard in shards], dtype=torch.float64)
        bad = []
        for name, (largest, infinite) in zip(active, collectives.sum_over_ranks(own).tolist(), strict=True):
            bad += [name] if infinite else []
            self.silent -= {name} if largest else set()
        stray = _stray(trainer.engine.module, active)
        if bad:
            self.conclude(f"the gradient of {_named(bad)} is not finite at step {step}", "")
        elif stray:
            self.conclude(f"{_named(stray)} should not train, and has a gradient", "")
        elif step == LOOKED_AT:
            silent = [name for name in active if name in self.silent]
            wrong = f"{_named(silent)} should train, and has no gradient but zero" if silent else None
            elements = sum(shard.numel for shard in shards)
            seen = (
                f"{len(active):,} parameters ({elements:,} elements) have finite gradients, no other has any"
            )
            self.conclude(wrong, seen)


def _named(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" (and {len(names) - 1:,} more)" if len(names) > 1 else "")


def _measured(values: Tensor | None) -> tuple[float, float]:
    """Return the largest magnitude of a part of a gradient, and how many of its elements are not finite."""
    if values is None or not values.numel():
        return 0.0, 0.0
    finite = torch.isfinite(values)
    bad = float((~finite).sum())
    return (0.0 if bad else float(values.abs().max())), bad


def _stray(module: torch.nn.Module, active: list[str]) -> list[str]:
    """Return the parameters that have a gradient and should not have, of all ranks."""
    rest = {name: param for name, param in module.named_parameters() if name not in set(active)}
    mine = [name for name, param in rest.items() if param.grad is not None]
    return sorted({name for names in collectives.gather(mine) for name in names})


@dataclass(frozen=True)
class Answer:
    """What the model in training said to one row, and how it was asked."""

    inputs: dict[str, Tensor]
    logits: Tensor
    """fp32, shape (1, tokens, vocabulary), or of a classification head (1, classes)."""
    dtype: torch.dtype
    """The model's arithmetic."""


class LearningByHeart(Callback):
    """Asks the run to stop once the loss over its rows is small, and takes the trained model's answer.

    The loss is the mean of as many steps as pass all rows once. The stop is a file, as a user's would be, so
    the state is saved one step later.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rows = self.epoch = 0
        """Rows, and steps that pass all of them."""
        self.learnt_at: int | None = None
        self._answer: Answer | None = None

    @property
    def mean(self) -> float:
        """The loss over all rows; infinite before all have come."""
        return sum(self.losses[-self.epoch :]) / self.epoch if len(self.losses) >= self.epoch else math.inf

    @property
    def answer(self) -> Answer:
        """The answer with the weights that are saved."""
        assert self._answer is not None, "the run has come to its end"
        return self._answer

    def at_start(self, trainer: Trainer) -> None:
        """Count the rows."""
        self.rows = trainer.data.order.block
        self.epoch = -(-self.rows // trainer.training.global_batch)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Note the loss, and whether it is small."""
        stopping = self.learnt_at is not None
        self.losses.append(step.values["loss"])
        if not stopping and self.mean < LEARNT:
            self.learnt_at = step.number
            if collectives.rank() == 0:
                trainer.run.stop_request.touch()
        if stopping or step.number == trainer.training.steps:
            self._answer = _answered(trainer, trainer.data.train[0])


def _answered(trainer: Trainer, row: Row) -> Answer:
    """Ask the model in training; every rank must call it."""
    under, data = trainer.engine, trainer.data
    inputs = padded([row.input_ids], data.pad_id, data.side)
    under.deepspeed.eval()
    with torch.no_grad(), pooled_at_the_end(cast("PreTrainedModel", under.module).config):
        logits = under.forward(inputs).float().cpu()
    under.deepspeed.train()
    return Answer(inputs, logits, next(under.module.parameters()).dtype)
