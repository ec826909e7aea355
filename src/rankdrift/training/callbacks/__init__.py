"""What happens around the training loop at fixed points, one file each; the loop itself is ``trainer.py``.

To add one, write ``training/callbacks/<name>.py`` with a :class:`Callback`, and put it into the order in
``training/run.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rankdrift.data.tokens import Row
    from rankdrift.training.trainer import Trainer


@dataclass
class Step:
    """An optimizer step that is done; the same on every rank."""

    number: int
    values: dict[str, float]
    """``loss`` (mean over targets, nats), ``learning_rate``, ``gradient_norm`` (before clipping)."""
    speed: dict[str, float] = field(default_factory=dict)
    """``tokens_per_second`` (padding left out), ``seconds``, ``seconds_<part>`` (``step_clock``), ``padding``
    (share of what this rank put through the model), and what callbacks add to the log's line."""
    of_tasks: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Sums of the loss over the targets of each of the run's tasks, nats, shape (tasks,)."""


class Callback:
    """Does nothing at any point; a kind of callback overrides the points it needs.

    Every rank calls all callbacks at the same points in the same order, so any of them may exchange
    something.
    """

    def at_start(self, trainer: Trainer) -> None:
        """Before the first step; ``trainer.start`` steps are done."""

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Before a step, whose time begins behind."""

    def before_micro_batch(self, trainer: Trainer, rows: list[Row]) -> None:
        """Before each forward pass of a step, by which these rows go."""

    def before_update(self, trainer: Trainer, step: int) -> float:
        """Between a step's last backward pass and its update; return the seconds that are not the step's."""
        return 0.0

    def tell(self, trainer: Trainer) -> float:
        """Return what the other ranks are to know: it travels with the loss."""
        return 0.0

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Take what every rank told, shape (ranks,)."""

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """After a step's update."""

    def at_end(self, trainer: Trainer) -> None:
        """After the last step."""


def is_due(step: int, every: int | None, last: int) -> bool:
    """Return whether something done every so many steps (None: at the last; 0: never) is due.

    >>> [step for step in range(1, 8) if is_due(step, 3, last=7)]
    [3, 6, 7]
    """
    if every == 0:
        return False
    return step == last or (every is not None and step % every == 0)
