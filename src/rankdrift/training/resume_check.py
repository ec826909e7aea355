"""The first step after an interruption, if it had been logged before it, must be what it was.

A run that is killed has usually logged steps after its newest checkpoint. When it resumes it takes them
again, and the first of them shows whether data, code, libraries and machine are still the same. What was
logged is kept in a file of its own until it has been met, because the log itself is cut on resuming.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rankdrift import files
from rankdrift.layout import RunLayout

logger = logging.getLogger(__name__)

VALUES = ("loss", "gradient_norm", "learning_rate")
SOFTWARE = ("python", "machine", "cpu_count", "packages", "ranks")
REORDERED = {"fp32": 1e-4, "bf16": 1e-2}
"""Largest relative difference of a loss that sums in another order may make (measured: docs/log.md)."""


@dataclass(frozen=True)
class Expected:
    """What a step was before the interruption, and how closely it must be met."""

    step: int
    values: Mapping[str, float]
    """By name: what is compared."""
    tolerance: float
    """Relative; 0 asks for the same bits."""

    def difference(self, values: Mapping[str, float]) -> str | None:
        """Say how the step as it is now differs; None if it does not."""
        for key, logged in self.values.items():
            if not abs(values[key] - logged) <= self.tolerance * abs(logged):
                return f"{key} is {values[key]!r}, but was {logged!r} before the interruption"
        return None


def conditions(environment: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step's last bits depend on besides the experiment: software, ranks, DeepSpeed's settings.

    ``environment`` is what a run writes of itself, ``config`` the merged DeepSpeed configuration.
    """
    return {**{key: environment.get(key) for key in SOFTWARE}, "config": dict(config)}


def keep(run: RunLayout, start: int) -> None:
    """Keep the first step that was logged after step ``start``, and under which conditions.

    Call it on rank 0 before the run's log and description are written anew. What is kept already stays.
    """
    if run.replay.exists():
        if start and files.read_json(run.replay)["step"] > start:
            return
        run.replay.unlink()
    rows = [row for row in files.read_jsonl(run.metrics) if row["split"] == "train"]
    later = [row for row in rows if start and row["step"] > start]
    if later and run.environment.exists() and run.ds_config.exists():
        under = conditions(files.read_json(run.environment), files.read_json(run.ds_config))
        kept = {"step": later[0]["step"], "values": {key: later[0][key] for key in VALUES}, "under": under}
        files.write_json(run.replay, kept)


def expected(run: RunLayout, now: Mapping[str, Any], precision: str, dropout: bool) -> Expected | None:
    """Return what is kept, with the tolerance that the conditions ask for; None if nothing can be compared.

    On a CPU under the same conditions every bit must be the same. Else sums may be taken in another order,
    and only the loss is compared; with dropout and another number of ranks other masks are drawn, and
    nothing can be compared.
    """
    if not run.replay.exists():
        return None
    kept = files.read_json(run.replay)
    if files.canonical_json(kept["under"]) == files.canonical_json(now) and not torch.cuda.is_available():
        return Expected(kept["step"], kept["values"], 0.0)
    if dropout and kept["under"]["ranks"] != now["ranks"]:
        logger.info("step %d is not compared: other ranks draw other dropout masks", kept["step"])
        return None
    return Expected(kept["step"], {"loss": kept["values"]["loss"]}, REORDERED[precision])


def forget(run: RunLayout) -> None:
    """Remove what is kept, once it has been met; call it on rank 0."""
    run.replay.unlink()
