"""Training on one GPU: every ZeRO stage in bf16, full and LoRA, saved, lost, resumed, consolidated, verified.

The noise between two runs is printed (``pytest -s``): what a resumed run may differ by from itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ranks import run_ranks

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.layout import RunLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORKER = Path(__file__).resolve().parent / "train_worker.py"
STEPS, SAVED = 8, 4
STAGES, METHODS = range(4), ("full", "lora")
RECIPE: dict[str, Any] = {
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic"], "train_limit": 64, "validation_limit": 8},
    "method": {"rank": 4},
    "training": {
        **{"steps": STEPS, "global_batch": 8, "micro_batch": 4, "warmup_steps": 1, "eval_rows": 4},
        **{"learning_rate": 1e-3, "save_every": SAVED, "probe_every": 1, "precision": "bf16"},
    },
}


@pytest.fixture(scope="module")
def runs(root: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to the end, and runs that lose what they logged after the first checkpoint and resume."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def job(stage: int, method: str, kind: str, **more: Any) -> dict[str, Any]:
        overrides = [f"output={folder}", "study=s", f"arm={method}-z{stage}-{kind}", f"method.name={method}"]
        config = str(root / "ds_configs" / f"zero{stage}.json")
        return {"recipe": str(folder / "recipe.yaml"), "config": config, "overrides": overrides, **more}

    jobs = []
    for stage in STAGES:
        for method in METHODS:
            jobs.append(job(stage, method, "whole"))
            jobs.append(job(stage, method, "resumed", stop_at=STEPS, saved=False))
            jobs.append(job(stage, method, "resumed"))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(1, WORKER, str(folder / "jobs.json"), accelerator=DEVICE)
    return folder


def run_of(folder: Path, method: str, stage: int, kind: str) -> RunLayout:
    return RunLayout(folder / "s" / "runs" / f"{method}-z{stage}-{kind}-seed42")


def column(run: RunLayout, key: str) -> np.ndarray:
    return np.array([row[key] for row in files.read_jsonl(run.metrics) if row["split"] == "train"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_losses_do_not_depend_on_the_stage(runs: Path, stage: int, method: str) -> None:
    losses, others = (column(run_of(runs, method, s, "whole"), "loss") for s in (stage, 1))
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, others, rtol=2e-3)  # bf16 has 8 bits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_repeats_itself_within_the_noise(runs: Path, stage: int, method: str) -> None:
    whole, resumed = (run_of(runs, method, stage, kind) for kind in ("whole", "resumed"))
    assert f"step {SAVED + 1} is as it was before the interruption" in resumed.log.read_text()
    for key in ("loss", "gradient_norm"):
        one, other = column(whole, key), column(resumed, key)
        noise = np.abs(one / other - 1)
        print(f"{method} stage {stage} {key}: step 1 {noise[0]:.1e}, largest {noise.max():.1e}")
        np.testing.assert_allclose(one, other, rtol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_statistics_are_those_of_the_norm(runs: Path, stage: int, method: str) -> None:
    run = run_of(runs, method, stage, "whole")
    probe = files.read_table(run.probe("gradients")).query("level == 'global'")
    np.testing.assert_allclose(probe["l2_norm"], column(run, "gradient_norm"), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_consolidated_and_verified(runs: Path, stage: int, method: str) -> None:
    run = run_of(runs, method, stage, "resumed")
    assert main(["consolidate", str(run.root)]) == 0
    assert main(["verify", str(run.root)]) == 0
    assert (run.export(STEPS) / "provenance.json").exists()
