"""The learning rate as a pure function of the step: there is no scheduler state to save."""

from __future__ import annotations

import math

from rankdrift.spec import TrainingSpec


def learning_rate(training: TrainingSpec, step: int) -> float:
    """Return the learning rate of optimizer step ``step`` (1 is the first).

    Linear warm-up reaches the peak at step ``warmup_steps + 1``; linear and cosine courses would reach
    zero one step after the last, so that no step is wasted.
    """
    if step <= training.warmup_steps:
        return training.learning_rate * step / (training.warmup_steps + 1)
    done = (step - training.warmup_steps - 1) / (training.steps - training.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return training.learning_rate * factor[training.schedule]
