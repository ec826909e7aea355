"""Whether the log of a run has its losses: read back from metrics.jsonl and from TensorBoard's events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout

TAG = "train/loss"


def check_log(run: RunLayout, losses: Sequence[float]) -> str:
    """Return what is logged; raise UserError where it is not the losses of steps 1, 2, ... as given."""
    expected = dict(enumerate(losses, start=1))
    lines = {row["step"]: row["loss"] for row in files.read_jsonl(run.metrics) if row["split"] == "train"}
    _require_same(run.metrics.name, lines, expected)
    events: Any = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    events.Reload()
    found = events.Scalars(TAG) if TAG in events.Tags()["scalars"] else []
    scalars = {event.step: event.value for event in found}
    # TensorBoard's numbers are fp32
    _require_same("TensorBoard", scalars, {step: float(np.float32(loss)) for step, loss in expected.items()})
    course = f"{TAG} {losses[0]:.3f} to {losses[-1]:.3f}"
    return f"{len(losses)} steps in {run.metrics.name} and TensorBoard, {course}"


def _require_same(where: str, found: Mapping[int, float], expected: Mapping[int, float]) -> None:
    for step, loss in expected.items():
        if step not in found:
            raise UserError(f"{where} has no {TAG} of step {step} ({len(found)} of {len(expected)} steps)")
        if found[step] != loss:
            raise UserError(f"{where} has {TAG} {found[step]!r} at step {step}, it was {loss!r}")
    if extra := sorted(found.keys() - expected.keys()):
        raise UserError(f"{where} has {TAG} of step {extra[0]}, which the run did not come to")
