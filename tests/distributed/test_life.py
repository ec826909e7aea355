"""A run ends where no evaluation is better, names its best checkpoint, and is as long as it was told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import RECIPE, job, run_of, train_jobs

from rankdrift import files
from rankdrift.layout import steps_in
from rankdrift.zero_checkpoint.shards import open_checkpoint

TRAINING = {
    **{"steps": 12, "global_batch": 8, "micro_batch": 4, "warmup_steps": 0, "precision": "fp32"},
    **{"schedule": "constant", "eval_rows": 4, "probe_every": 0, "learning_rate": 2e-3},
}
STUCK = ("training.learning_rate=1e-12", "training.min_delta=0.01", "training.eval_every=2")


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("life")
    patient = (*STUCK, "training.patience=2", "training.save_every=2")
    jobs = [
        job(folder, "ended", 2, *patient),
        # killed within its patience, then again once it has ended
        job(folder, "killed", 2, *patient, stop_at=2),
        job(folder, "killed", 2, *patient),
        job(folder, "killed", 2, *patient),
        job(folder, "learning", 2, "training.patience=1", "training.eval_every=4"),
        job(folder, "epochs", 2, "training.epochs=1.5"),
        job(folder, "listed", 2, "training.eval_steps=[3,5]", "training.eval_every=12"),
        job(
            folder, "best", 2, "training.eval_items=4", "training.best=validation/topic/accuracy",
            "training.save_every=3", "training.eval_every=3", "training.keep_best=1",
        ),
        *(job(folder, f"bits-{n}", 2, "training.deterministic=true", "training.steps=4") for n in range(2)),
    ]  # fmt: skip
    train_jobs(folder, RECIPE | {"training": TRAINING}, [(2, jobs)])
    return folder


def evaluated(runs: Path, arm: str) -> list[int]:
    rows = files.read_jsonl(run_of(runs, arm).metrics)
    return [row["step"] for row in rows if row["split"] == "validation"]


@pytest.mark.distributed
@pytest.mark.parametrize("arm", ["ended", "killed"])
def test_a_run_ends_after_its_patience_interrupted_or_not(runs: Path, arm: str) -> None:
    assert evaluated(runs, arm) == [0, 2, 4], "step 0 is the best, and two evaluations are none better"
    status = files.read_json(run_of(runs, arm).status)
    assert (status["state"], status["step"], status["steps"]) == ("finished", 4, 12)
    assert steps_in(run_of(runs, arm).checkpoints) == [2, 4]


@pytest.mark.distributed
def test_a_run_that_learns_goes_on(runs: Path) -> None:
    assert files.read_json(run_of(runs, "learning").status)["step"] == 12


@pytest.mark.distributed
def test_epochs_are_steps(runs: Path) -> None:
    rows = 60  # of the recipe
    steps = -(-3 * rows // 2 // 8)
    assert files.read_json(run_of(runs, "epochs").status)["step"] == steps
    assert files.read_json(run_of(runs, "epochs").spec)["training"]["steps"] == steps


@pytest.mark.distributed
def test_listed_steps_are_evaluated(runs: Path) -> None:
    assert evaluated(runs, "listed") == [0, 3, 5, 12]


@pytest.mark.distributed
def test_the_best_is_named_and_kept(runs: Path) -> None:
    run = run_of(runs, "best")
    rows = files.read_jsonl(run.metrics)
    accuracy = {row["step"]: row["accuracy"] for row in rows if row["split"] == "validation/topic"}
    saved = {step: accuracy[step] for step in (3, 6, 9, 12)}
    best = min(step for step in saved if saved[step] == max(saved.values()))
    assert files.read_json(run.best) == {
        "step": best, "of": "validation/topic/accuracy", "value": saved[best],
    }  # fmt: skip
    assert steps_in(run.checkpoints) == sorted({best, 12})


@pytest.mark.distributed
def test_the_same_seed_gives_the_same_bits(runs: Path) -> None:
    one, other = (open_checkpoint(run_of(runs, f"bits-{n}").checkpoint(4)).tensors for n in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name].load(), other[name].load()) for name in one)
