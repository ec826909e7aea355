"""Training on one GPU: every ZeRO stage in bf16, full and LoRA, saved, lost, resumed, consolidated, verified.

The noise between two runs is printed (``pytest -s``): what a resumed run may differ by from itself.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ranks import HERE, RECIPE, job, run_of, run_ranks

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.layout import RunLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS, SAVED = 8, 4
STAGES, METHODS = range(4), ("full", "lora")
TRAINING = {
    **{"steps": STEPS, "global_batch": 8, "micro_batch": 4, "warmup_steps": 1, "eval_rows": 4},
    **{"learning_rate": 1e-3, "save_every": SAVED, "probe_every": 1, "precision": "bf16"},
}
DATA = {"tasks": ["topic"], "train_limit": 64, "validation_limit": 8}


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to the end, and runs that lose what they logged after the first checkpoint and resume."""
    folder = tmp_path_factory.mktemp("gpu")
    recipe = RECIPE | {"data": DATA, "method": {"rank": 4}, "training": TRAINING}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    jobs = []
    for stage, method in itertools.product(STAGES, METHODS):
        name, settings = f"{method}-z{stage}", f"method.name={method}"
        jobs.append(job(folder, f"{name}-whole", stage, settings))
        jobs.append(job(folder, f"{name}-resumed", stage, settings, stop_at=STEPS, saved=False))
        jobs.append(job(folder, f"{name}-resumed", stage, settings))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(1, HERE / "train_worker.py", str(folder / "jobs.json"), accelerator=DEVICE)
    return folder


def column(run: RunLayout, key: str) -> np.ndarray:
    return np.array([row[key] for row in files.read_jsonl(run.metrics) if row["split"] == "train"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_losses_do_not_depend_on_the_stage(runs: Path, stage: int, method: str) -> None:
    losses, others = (column(run_of(runs, f"{method}-z{s}-whole"), "loss") for s in (stage, 1))
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, others, rtol=2e-3)  # bf16 has 8 bits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_repeats_itself_within_the_noise(runs: Path, stage: int, method: str) -> None:
    whole, resumed = (run_of(runs, f"{method}-z{stage}-{kind}") for kind in ("whole", "resumed"))
    assert f"step {SAVED + 1} is as it was before the interruption" in resumed.log.read_text()
    for key in ("loss", "gradient_norm"):
        one, other = column(whole, key), column(resumed, key)
        noise = np.abs(one / other - 1)
        print(f"{method} stage {stage} {key}: step 1 {noise[0]:.1e}, largest {noise.max():.1e}")
        np.testing.assert_allclose(one, other, rtol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_statistics_are_those_of_the_norm(runs: Path, stage: int, method: str) -> None:
    run = run_of(runs, f"{method}-z{stage}-whole")
    probe = files.read_table(run.probe("gradients")).query("level == 'global'")
    np.testing.assert_allclose(probe["l2_norm"], column(run, "gradient_norm"), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_consolidated_and_verified(runs: Path, stage: int, method: str) -> None:
    run = run_of(runs, f"{method}-z{stage}-resumed")
    assert main(["consolidate", str(run.root)]) == 0
    assert main(["verify", str(run.root)]) == 0
    assert (run.export(STEPS) / "provenance.json").exists()
