"""Start Python scripts as the ranks of process groups on this machine, without DeepSpeed's launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    """Train (ranks, runs) one group after the other, all in one start of Python and DeepSpeed."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "jobs.json").write_text(json.dumps([{"ranks": ranks, "jobs": jobs} for ranks, jobs in groups]))
    command = [sys.executable, str(HERE / "train_worker.py"), str(folder / "jobs.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-6000:]


def run_ranks(
    ranks: int, script: Path, *arguments: str, timeout: float = 280, accelerator: str = "cpu"
) -> None:
    """Run ``script`` once a rank; fail with the error stream of a rank that fails."""
    shared: dict[str, Any] = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    # the launcher sets LOCAL_SIZE, and DeepSpeed opens shared memory only where it does
    shared |= {"LOCAL_SIZE": ranks, "OMP_NUM_THREADS": 1, "DS_ACCELERATOR": accelerator}
    command = [sys.executable, str(script), *arguments]
    processes = []
    for rank in range(ranks):
        here = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | here, **pipes))
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    for number, process in enumerate(processes):
        assert process.returncode == 0, f"rank {number} of {script.name} failed:\n{outputs[number][-6000:]}"
