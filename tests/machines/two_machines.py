"""A training of the tiny model that several machines carry out, and where its files are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from vms import ROOT, Machine

from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.manifest import newest

RECIPE: dict[str, Any] = {
    "study": "s",
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic"], "train_limit": 40, "validation_limit": 4},
    "method": {"name": "full"},
    "training": {
        "save_every": 2,
        "global_batch": 4,
        "micro_batch": 2,
        "learning_rate": 2e-3,
        "precision": "fp32",
        "eval_rows": 2,
        "probe_every": 0,
    },
}
thorough = pytest.mark.skipif(
    os.environ.get("RANKDRIFT_TEST_MACHINES") != "all",
    reason="takes minutes: set RANKDRIFT_TEST_MACHINES=all",
)


def training(folder: Path, stage: int, arm: str, steps: int = 4) -> list[str]:
    """Return the arguments of a training; its recipe is written into the folder."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    config = str(ROOT / "ds_configs" / f"zero{stage}.json")
    return ["--config", config, "--experiment", str(recipe), f"arm={arm}", f"training.steps={steps}"]


def run_of(machine: Machine, arm: str) -> RunLayout:
    """The run as a machine has it."""
    return RunLayout(machine.outputs / "s" / "runs" / f"{arm}-seed42")


def newest_of(machine: Machine, arm: str) -> int:
    """The newest step that a machine has a part of; 0 for none."""
    return newest(run_of(machine, arm).checkpoints) or 0
