"""Which of a run's steps is the best, and when no better one is to be expected; read from what it logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rankdrift import registry
from rankdrift.spec import TrainingSpec


def logged(rows: Iterable[Mapping[str, Any]], value: str) -> dict[int, float]:
    """Return a value by step out of the lines of ``metrics.jsonl``; ``value`` is SPLIT/KEY.

    >>> logged([{"step": 4, "split": "validation/sst2", "loss": 0.5}], "validation/sst2/loss")
    {4: 0.5}
    """
    split, _, key = value.rpartition("/")
    found = {row["step"]: row.get(key) for row in rows if row["split"] == split}
    return {step: float(number) for step, number in found.items() if number is not None}


def is_better_low(value: str) -> bool:
    """Return whether smaller values are better: losses are, and metrics that say so."""
    key = value.rpartition("/")[2]
    if key in registry.names("metric"):
        return not registry.load("metric", key).higher_is_better
    return True


def costs(rows: Iterable[Mapping[str, Any]], value: str) -> dict[int, float]:
    """Return a logged value by step such that smaller is better."""
    sign = 1 if is_better_low(value) else -1
    return {step: sign * number for step, number in logged(rows, value).items()}


def is_exhausted(costs: Mapping[int, float], patience: int, min_delta: float) -> bool:
    """Return whether the last ``patience`` evaluations are none better than those before by ``min_delta``.

    >>> is_exhausted({0: 3.0, 10: 2.0, 20: 1.95, 30: 1.99}, patience=2, min_delta=0.1)
    True
    """
    best, since = math.inf, 0
    for step in sorted(costs):
        if costs[step] < best - min_delta:
            best, since = costs[step], 0
        else:
            since += 1
    return since >= patience


def best_of(costs: Mapping[int, float], steps: Iterable[int], value: str) -> dict[str, Any]:
    """Return the best of some steps as ``best.json`` has it; empty where none of them has the value."""
    known = [step for step in steps if step in costs]
    if not known:
        return {}
    step = min(known, key=lambda step: (costs[step], step))
    sign = 1 if is_better_low(value) else -1
    return {"step": step, "of": value, "value": sign * costs[step]}


def require_logged(training: TrainingSpec, metrics: Mapping[str, Iterable[str]]) -> str:
    """Return why the value that selects is never logged; empty if it is.

    Parameters
    ----------
    training
        The settings.
    metrics
        Each of the run's tasks -> names of its metrics, logged where ``training.eval_items`` is not 0.

    """
    known = ["validation/loss"]
    for task, names in metrics.items():
        known += [f"validation/{task}/loss"]
        known += [f"validation/{task}/{name}" for name in names] if training.eval_items else []
    if training.best in known:
        return ""
    hint = "" if training.eval_items else "; metrics are with training.eval_items above 0"
    return f"training.best={training.best}: no such value is logged (there are {', '.join(known)}{hint})"
