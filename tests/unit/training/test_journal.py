"""What a resumed run logs: no step twice, in the log, the tables and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.training.journal import Journal
from rankdrift.training.probes import Sums

STEPS = 6


def values(step: int, **changes: float) -> dict[str, float]:
    return {"loss": 1 / 3 + step, "gradient_norm": 2.0 / step, "learning_rate": 1e-4, **changes}


def logged(run: RunLayout, start: int, until: int) -> Journal:
    """Log the steps of a run from its start to a kill."""
    run.probes.mkdir(parents=True, exist_ok=True)
    journal = Journal(run, STEPS, start)
    for step in range(start + 1, until + 1):
        journal.metrics(step, "train", values(step))
        journal.metrics(step, "validation", {"loss": float(step)})
        sums = Sums(torch.zeros(1), lambda totals: {"layer": 0, "l2_norm": totals})
        journal.probe("gradients", step, 0, sums, np.array([float(step)]))
    journal.flush()
    return journal


def scalars(run: RunLayout) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.tensorboard)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    return RunLayout(tmp_path / "run")


def test_a_resumed_run_logs_no_step_twice(run: RunLayout) -> None:
    logged(run, 0, 5)
    logged(run, 3, STEPS).close()
    rows = [(row["step"], row["split"]) for row in files.read_jsonl(run.metrics)]
    assert rows == [(step, split) for step in range(1, STEPS + 1) for split in ("train", "validation")]
    assert files.read_table(run.probe("gradients"))["step"].tolist() == list(range(1, STEPS + 1))
    losses = scalars(run)["train/loss"]
    assert losses == [(step, pytest.approx(values(step)["loss"])) for step in range(1, STEPS + 1)]
    assert [step for step, _ in scalars(run)["validation/loss"]] == list(range(1, STEPS + 1))
