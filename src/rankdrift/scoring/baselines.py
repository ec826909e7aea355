"""What a task's metrics are without a model: the numbers that a score has to be read against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from rankdrift import registry
from rankdrift.metrics import Metric
from rankdrift.scoring.items import TaskItems

DRAWS = 100
"""How often choices are guessed at random, whose mean is told; texts are guessed once, as some metrics of
texts take seconds."""


def baselines(items: TaskItems) -> dict[str, dict[str, float | None]]:
    """Return metric -> rule ("majority", "random") -> value; a rule that the kind does not have is left out.

    The same for the same items, on any machine.
    """
    random = Random(f"baselines/{items.task.name}")
    chooses = "choice" in items.task.kind.gives
    drawn = [
        items.task.kind.guesses(items.task, items.examples, items.items, random)
        for _ in range(DRAWS if chooses else 1)
    ]
    return {
        name: {
            rule: _mean_value(items, name, [draw[rule] for draw in _distinct(drawn, rule)])
            for rule in drawn[0]
        }
        for name in items.task.metrics
    }


def _distinct(drawn: Sequence[dict[str, Any]], rule: str) -> Sequence[dict[str, Any]]:
    """Return the draws of a rule; one is enough of what is not random."""
    return drawn if rule == "random" else drawn[:1]


def _mean_value(items: TaskItems, name: str, draws: Sequence[Sequence[Any]]) -> float | None:
    metric: Metric = registry.load("metric", name)
    answers = [example.right(metric.reads) for example in items.examples]
    values = [metric.compute([guess[metric.reads] for guess in draw], answers) for draw in draws]
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None
