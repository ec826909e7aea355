"""Every command of the README and of two pages of the docs runs: those that train, on a tiny model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import run_command

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = [
    *("model.name=tiny", "data.train_limit=60", "data.validation_limit=12", "training.steps=4"),
    *("training.save_every=2", "training.warmup_steps=1", "scoring.text_limit=4", "analysis.workers=1"),
]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
TRAINING = (
    "deepspeed",
    *(f"rankdrift {name}" for name in ("study run", "run", "data", "fetch", "plan", "check")),
)
# whose own head gives no token much probability, so that LoRA could learn no row by heart
LEARNABLE = {"rankdrift check": ["model.head=classifier"]}
# what the demo has, and what SMALL makes
SMALLER = {"smollm2-135m": "tiny", "step-000012": "step-000004", "--step 12": "--step 4"}
# what four steps of a model of random weights may not have
MAY_LACK = {"rankdrift analyze intervene": "no intruder among the 10 leading vectors"}
DOCUMENTS = ("README.md", "docs/checkpoints.md", "docs/analysis.md")
# commands that are run by other means: the demo runs the first, this very test run is the second
ELSEWHERE = ("make demo", "make test", "make help", "git clone", "cd ", "tensorboard")


def commands() -> list[str]:
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh checkout to the commands; what they write stays in it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_the_readme_has_commands_of_every_kind() -> None:
    words = {" ".join(command.split()[:2]) for command in commands()}
    assert {"make demo", "make test", "rankdrift study", "rankdrift run", "rankdrift consolidate"} <= words
    assert {"rankdrift score", "rankdrift analyze", "rankdrift report"} <= words
    assert any(command.startswith("deepspeed launch/train.py") for command in commands())


@pytest.mark.parametrize("target", [c.split()[1] for c in commands() if c.startswith("make ")])
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_other_command_runs_in_the_order_it_stands(folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran, started = 0, set[str]()
    for written in commands():
        command = written
        if command.startswith(ELSEWHERE):
            continue
        for named, small in SMALLER.items():
            command = command.replace(named, small)
        words = shlex.split(command) + (SMALL if command.startswith(TRAINING) else [])
        words += LEARNABLE.get(command, [])
        if words[0] == "rankdrift" and words[1] in started:  # as the first of its name was, from nothing
            status, said = run_command(*words[1:], folder=folder)
        else:
            both: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            done = subprocess.run(words, cwd=folder, env=environment, timeout=600, **both)
            status, said = done.returncode, done.stdout
            started.add(words[1])
        lacks = MAY_LACK.get(" ".join(words[:3]))
        assert status == 0 or (lacks and lacks in said), f"{command}\n{said[-4500:]}"
        ran += 1
    assert ran >= 6
    assert (folder / "outputs" / "demo" / "report.html").exists()
