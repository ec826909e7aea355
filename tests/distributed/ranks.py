"""Start Python scripts as the ranks of process groups on this machine, without DeepSpeed's launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from forked import free_port, run_forked

from rankdrift.layout import RunLayout

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent.parent / "ds_configs"
RECIPE: dict[str, Any] = {
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic"], "train_limit": 60, "validation_limit": 12},
    "method": {"name": "full"},
}
INTERRUPTED: dict[str, Any] = {
    "study": "s",
    "arm": "a",
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic", "describe"], "train_limit": 40, "validation_limit": 4},
    "method": {"name": "lora", "rank": 2, "dropout": 0.1},
    "training": {
        "global_batch": 4,
        "micro_batch": 1,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "precision": "fp32",
        "eval_rows": 2,
    },
}
"""A run that is stopped or killed: two tasks mixed, dropout, so that whatever is lost shows."""
Jobs = list[dict[str, Any]]


def interrupted(**training: Any) -> str:
    """Return that run's recipe."""
    return yaml.safe_dump(INTERRUPTED | {"training": INTERRUPTED["training"] | training})


def job(folder: Path, arm: str, config: Path | str | int, *overrides: str, **more: Any) -> dict[str, Any]:
    """Return a run for ``train_worker.py``; ``config`` is a DeepSpeed JSON, or one of ours by its stage."""
    path = config if isinstance(config, Path) else CONFIGS / f"zero{config}.json"
    named = [f"output={folder}", "study=s", f"arm={arm}", *overrides]
    return {"recipe": str(folder / "recipe.yaml"), "config": str(path), "overrides": named, **more}


def run_of(folder: Path, arm: str) -> RunLayout:
    return RunLayout(folder / "s" / "runs" / f"{arm}-seed42")


def train_jobs(
    folder: Path, recipe: dict[str, Any], groups: list[tuple[int, Jobs]], timeout: float = 500
) -> None:
    """Train (ranks, runs) one group after the other, all runs of a group in one process group."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for ranks, jobs in groups:
        (folder / "jobs.json").write_text(json.dumps(jobs))
        run_ranks(ranks, HERE / "train_worker.py", str(folder / "jobs.json"), timeout=timeout)


def run_ranks(
    ranks: int, script: Path, *arguments: str, timeout: float = 500, accelerator: str = "cpu"
) -> None:
    """Run ``script`` as every rank of a process group; fail with what they have printed if one fails."""
    if accelerator == "cpu":
        status, said = run_forked(script, *arguments, ranks=ranks, timeout=timeout)
    else:  # which a forked process could not use
        status, said = _run_alone(script, *arguments, timeout=timeout, accelerator=accelerator)
    assert status == 0, f"{script.name} failed:\n{said[-6000:]}"


def _run_alone(script: Path, *arguments: str, timeout: float, accelerator: str) -> tuple[int, str]:
    """Run ``script`` as the only rank of its group."""
    alone = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "LOCAL_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    alone |= {"OMP_NUM_THREADS": 1, "DS_ACCELERATOR": accelerator}
    environment = os.environ | {key: str(value) for key, value in alone.items()}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, timeout=timeout, **pipes
    )
    return done.returncode, done.stdout
