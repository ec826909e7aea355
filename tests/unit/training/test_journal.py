"""What a resumed run logs: nothing twice, and the first replayed step is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankdrift import records
from rankdrift.layout import RunLayout
from rankdrift.training.journal import Journal

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
        journal.probe("gradients", step, [{"layer": 0, "l2_norm": float(step)}])
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
    rows = [(row["step"], row["split"]) for row in records.read_jsonl(run.metrics)]
    assert rows == [(step, split) for step in range(1, STEPS + 1) for split in ("train", "validation")]
    assert records.read_table(run.probe("gradients"))["step"].tolist() == list(range(1, STEPS + 1))
    losses = scalars(run)["train/loss"]
    assert losses == [(step, pytest.approx(values(step)["loss"])) for step in range(1, STEPS + 1)]
    assert [step for step, _ in scalars(run)["validation/loss"]] == list(range(1, STEPS + 1))


def test_a_new_run_has_nothing_to_replay(run: RunLayout) -> None:
    assert logged(run, 0, 5).replayed_step is None
    assert Journal(run, STEPS, 0).replayed_step is None  # killed before its first checkpoint
    assert not run.replay.exists()


def test_a_run_stopped_at_its_checkpoint_has_nothing_to_replay(run: RunLayout) -> None:
    logged(run, 0, 3)
    assert Journal(run, STEPS, 3).replayed_step is None


def test_the_same_step_is_accepted_and_forgotten(run: RunLayout) -> None:
    logged(run, 0, 5)
    journal = Journal(run, STEPS, 3)
    assert journal.replayed_step == 4
    assert journal.difference(values(4), tolerance=0.0) is None
    assert journal.replayed_step is None
    assert not run.replay.exists()


@pytest.mark.parametrize("key", ["loss", "gradient_norm", "learning_rate"])
def test_another_step_is_refused_until_it_is_the_same(run: RunLayout, key: str) -> None:
    logged(run, 0, 5)
    other = values(4, **{key: values(4)[key] * (1 + 1e-6)})
    for _ in range(3):  # a refusal is not forgotten by starting again, although the log was cut
        journal = Journal(run, STEPS, 3)
        assert journal.replayed_step == 4
        assert f"{key} is {other[key]!r}, but was {values(4)[key]!r}" in str(journal.difference(other, 0.0))
    assert journal.difference(other, tolerance=1e-5) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_no_number_is_refused(run: RunLayout, value: float) -> None:
    logged(run, 0, 5)
    assert Journal(run, STEPS, 3).difference(values(4, loss=value), tolerance=0.5)


def test_only_logged_steps_are_replayed(run: RunLayout) -> None:
    run.probes.mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"step": step, "split": "train", **values(step)} for step in (2, 4)]
    records.write_text(run.metrics, "".join(map(records.json_line, rows)))
    assert Journal(run, STEPS, 2).replayed_step == 4


def test_a_later_checkpoint_makes_an_older_replay_void(run: RunLayout) -> None:
    records.write_json(run.replay, {"step": 4, "split": "train", **values(4)})
    assert Journal(run, STEPS, 4).replayed_step is None
    assert not run.replay.exists()
