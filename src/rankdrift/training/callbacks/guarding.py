"""Looks after the numbers: ends a run whose loss is no number, naming where, and warns of spikes."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankdrift.errors import UserError
from rankdrift.models.families import in_block
from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)

WINDOW, FEWEST = 50, 20
"""Steps whose losses a step's is compared with, and how many there have to be."""
SPIKE = 8.0
"""Median absolute deviations above the median, and at least half of it, from which on a loss is a spike."""


class Guarding(Callback):
    """Sums of every block's outputs, which are no number where any of them is: read where a run fails."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: list[tuple[int, int, Tensor]] = []
        """Micro-batch, block, sum of its outputs, of the step under way."""
        self.micro_batch = -1
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def at_start(self, trainer: Trainer) -> None:
        """Watch the blocks, unless they are compiled: a hook would be compiled with them."""
        if not trainer.setup.spec.model.compile:
            self.watch(trainer.engine.module)

    def watch(self, model: nn.Module) -> None:
        """Sum up the outputs of the embedding and of every block in training."""
        for name, module in model.named_modules():
            if _is_watched(name):
                module.register_forward_hook(self._hook(len(self.names)))
                self.names.append(name.removeprefix("base_model.model."))

    def _hook(self, number: int) -> Any:
        def see(module: nn.Module, given: Any, output: Any) -> None:
            if module.training:
                first = output[0] if isinstance(output, tuple) else output
                self.sums.append((self.micro_batch, number, first.detach().sum()))

        return see

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Forget the step before."""
        self.sums.clear()
        self.micro_batch = -1

    def before_micro_batch(self, trainer: Trainer, rows: Any) -> None:
        """Count micro-batches."""
        self.micro_batch += 1

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Raise UserError on every rank where a value is no number; warn of a loss far above those before."""
        wrong = [key for key, value in step.values.items() if not math.isfinite(value)]
        if wrong:
            found = [place for place in collectives.gather(self.first_wrong()) if place]
            place = found[0] if found else "all blocks' outputs are finite: the head or a gradient overflowed"
            raise UserError(
                f"{trainer.run.root}: {wrong[0]} is {step.values[wrong[0]]} at step {step.number}; {place}. "
                "Lower training.learning_rate or training.clip, or use training.precision=fp32; "
                "the checkpoints before it are as they were"
            )
        self._warn_of_spike(step)
        self.losses.append(step.values["loss"])

    def first_wrong(self) -> str:
        """Return the first output of this rank's step that is not finite; empty if all are."""
        if not self.sums:
            return ""
        finite = torch.isfinite(torch.stack([total.float() for _, _, total in self.sums])).tolist()
        for (micro_batch, number, _), right in zip(self.sums, finite, strict=True):
            if not right:
                return (
                    f"the first output that is not finite is that of '{self.names[number]}' (rank "
                    f"{collectives.rank()}, micro-batch {micro_batch + 1})"
                )
        return ""

    def _warn_of_spike(self, step: Step) -> None:
        loss = step.values["loss"]
        if len(self.losses) >= FEWEST and is_spike(loss, list(self.losses)):
            logger.warning(
                "step %d: the loss is %.3g, the median of the last %d steps %.3g; its rows are unusual, or "
                "the learning rate is too high", step.number, loss, len(self.losses), median(self.losses)
            )  # fmt: skip


def is_spike(loss: float, before: list[float]) -> bool:
    """Return whether a loss is far above those of the steps before."""
    middle = median(before)
    deviation = median(abs(value - middle) for value in before)
    return loss - middle > max(SPIKE * deviation, middle / 2)


def _is_watched(name: str) -> bool:
    """Return whether a module is a block or the embedding of tokens."""
    block = in_block(f"{name}.")
    return (block is not None and not block[1]) or name.endswith(("embed_tokens", "wte", "embed_in"))
