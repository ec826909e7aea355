"""The learning rate as a pure function of the step: there is no scheduler state to save."""

from __future__ import annotations

import math

from rankdrift.spec import TrainingSpec


def learning_rate(training: TrainingSpec, step: int) -> float:
    """Return the learning rate of optimizer step ``step`` (1 is the first).

    Linear warm-up reaches the peak at the step behind it; courses that go down would reach their minimum one
    step after the last, so that no step is wasted.
    """
    if step <= training.warmup:
        return training.learning_rate * step / (training.warmup + 1)
    factor = _course(training, step)
    return training.learning_rate * (training.minimum_rate + (1 - training.minimum_rate) * factor)


def _course(training: TrainingSpec, step: int) -> float:
    """Return how much is left of the way from the peak to the minimum."""
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "wsd":  # warm-up, stable, decay (arXiv 2404.06395)
        return 1.0 - max(0, step - 1 - training.steps + training.decay) / training.decay
    done = (step - training.warmup - 1) / (training.steps - training.warmup)
    return 1.0 - done if training.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
