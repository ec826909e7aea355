"""The first step after an interruption, if it had been logged before it, must be what it was.

A run that is killed has usually logged steps after its newest checkpoint. When it resumes it takes them
again, and the first of them shows whether data, code, libraries and machine are still the same. What was
logged is kept in a file of its own until it has been met, because the log itself is cut on resuming.

On a CPU under the same conditions every bit must be the same. Elsewhere sums are taken in another order:
then the loss of the step that follows the checkpoint, whose weights are the same bits, may differ by what
the order of sums makes of it, which is measured there and then (:func:`rounding_noise`). Later steps are not
compared: rounding grows from step to step at no rate that is known.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankdrift import files
from rankdrift.layout import RunLayout

logger = logging.getLogger(__name__)

VALUES = ("loss", "gradient_norm", "learning_rate")
SOFTWARE = ("python", "machine", "cpu_count", "packages", "ranks")


@dataclass(frozen=True)
class Expected:
    """What a step was before the interruption, and how closely it must be met."""

    step: int
    values: Mapping[str, float]
    """By name: what is compared."""
    exact: bool
    """Whether the same bits are asked for, or the same up to the noise of rounding."""

    def difference(self, values: Mapping[str, float], noise: float) -> str | None:
        """Say how the step as it is now differs by more than the noise; None if it does not."""
        bound = 0.0 if self.exact else noise
        for key, logged in self.values.items():
            if not abs(values[key] - logged) <= bound:
                within = "" if self.exact else f" (rounding explains {bound:.1e})"
                return f"{key} is {values[key]!r}, but was {logged!r} before the interruption{within}"
        return None


def rounding_noise(together: Tensor, alone: Tensor) -> float:
    """Return how far a sum of losses may move where its parts are computed in another order.

    ``together`` and ``alone`` (rows,) are every row's loss computed in its micro-batch and by itself: the
    same number, rounded along two ways. The bound is twice the sum of their distances, as if all pointed one
    way (with n rows whose errors are independent that is about 1.6 sqrt(n) standard deviations of the sum),
    and what fp32 may lose by adding up the rows.
    """
    spread = (together.double() - alone.double()).abs().sum()
    return float(2 * spread + len(alone) * torch.finfo(torch.float32).eps * alone.double().abs().sum())


def conditions(
    environment: Mapping[str, Any], config: Mapping[str, Any], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a step's last bits depend on besides the experiment: software, ranks, DeepSpeed's settings.

    ``environment`` is what a run writes of itself, ``config`` the merged DeepSpeed configuration and ``spec``
    the tree of settings; that of a run that knew no packing says nothing of it.
    """
    software = {key: environment.get(key) for key in SOFTWARE}
    packing = spec["training"].get("packing", "off")
    training, model = spec["training"], spec["model"]
    apart = training["probe_every"] if training.get("probe_conflict") else 0
    further = {key: training.get(key) for key in ("micro_batch_tokens", "deterministic")}
    further |= {key: model.get(key, False) for key in ("gradient_checkpointing", "compile", "liger")}
    described = {"attention": model["attention"], "packing": packing, "tasks apart": apart, **further}
    return {**software, "config": dict(config), **described}


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
    if later and all(file.exists() for file in (run.environment, run.ds_config, run.spec)):
        under = conditions(*map(files.read_json, (run.environment, run.ds_config, run.spec)))
        kept = {
            "step": later[0]["step"],
            "after": start,
            "values": {key: later[0][key] for key in VALUES},
            "under": under,
        }
        files.write_json(run.replay, kept)


def expected(run: RunLayout, now: Mapping[str, Any], dropout: bool) -> Expected | None:
    """Return what is kept, and how it is to be met under these conditions; None if nothing can be compared.

    With dropout and another number of ranks other masks are drawn, and nothing can be.
    """
    if not run.replay.exists():
        return None
    kept = files.read_json(run.replay)
    if files.canonical_json(kept["under"]) == files.canonical_json(now) and not torch.cuda.is_available():
        return Expected(kept["step"], kept["values"], exact=True)
    if kept["step"] != kept.get("after", kept["step"]) + 1:
        logger.info("step %d is not compared: it was not logged right after the checkpoint", kept["step"])
        return None
    if dropout and kept["under"]["ranks"] != now["ranks"]:
        logger.info("step %d is not compared: other ranks draw other dropout masks", kept["step"])
        return None
    return Expected(kept["step"], {"loss": kept["values"]["loss"]}, exact=False)


def forget(run: RunLayout) -> None:
    """Remove what is kept, once it has been met; call it on rank 0."""
    run.replay.unlink()
