"""A run that is asked to save, or to save and stop, does so on all ranks at one step, and loses nothing.

The cases of a request's moment share one process group (``preempt_worker.py``). The ways a run is ended from
outside are tried one after the other on one run, each taking it a few steps further.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ranks import CONFIGS, interrupted

from rankdrift import files
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.studies.launcher import run_ranks
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps
from rankdrift.zero_checkpoint.shards import open_checkpoint

pytestmark = pytest.mark.distributed

HERE = Path(__file__).resolve().parent
CONFIG = CONFIGS / "zero2.json"
SECONDS = 200.0  # until what must happen has happened
STEPS = 60  # more than pass in all the starts and stops below
RECIPE = interrupted(steps=6, eval_every=3, probe_every=2)


def asked(what: str, rank: int, when: str, step: int) -> dict[str, Any]:
    return {"what": what, "rank": rank, "when": when, "step": step}


def stopped_after(step: int) -> str:
    return f"Preempted: RUN: after step {step}; run the same command again to go on"


# what is asked; how the run ends; the checkpoints there are then
CASES: dict[str, tuple[list[dict[str, Any]], str, list[int]]] = {
    "nothing": ([], "finished", [6]),
    "save, one rank": ([asked("SIGUSR1", 1, "train_step", 2)], "finished", [2, 6]),
    "save, file": ([asked("SAVE", 0, "train_step", 2)], "finished", [2, 6]),
    "save, before the first step": ([asked("SIGUSR1", 0, "evaluate", 0)], "finished", [1, 6]),
    "stop, one rank": ([asked("SIGTERM", 1, "train_step", 3)], stopped_after(3), [3]),
    "stop, interrupt": ([asked("SIGINT", 0, "train_step", 3)], stopped_after(3), [3]),
    "stop, file": ([asked("STOP", 0, "train_step", 3)], stopped_after(3), [3]),
    "stop, in evaluation": ([asked("SIGTERM", 1, "evaluate", 3)], stopped_after(3), [3]),
    "stop, in a save": (
        [asked("SIGUSR1", 0, "train_step", 3), asked("SIGTERM", 1, "begin", 3)],
        stopped_after(3),
        [3],
    ),
    "stop, twice": (
        [asked("SIGTERM", 1, "train_step", 3), asked("SIGTERM", 0, "begin", 3)],
        stopped_after(3),
        [3],
    ),
    "stop, at the end": ([asked("STOP", 0, "train_step", 6)], "finished", [6]),
    "stop, before the first step": ([asked("SIGTERM", 0, "evaluate", 0)], stopped_after(0), []),
    "stop, no space": ([asked("SIGTERM", 0, "train_step", 3)], "UserError: no space", []),
}


def run_of(output: Path) -> RunLayout:
    return StudyLayout(output / "s").run("a-seed42")


def losses(run: RunLayout) -> list[tuple[Any, ...]]:
    keys = ("step", "split", "loss", "gradient_norm", "learning_rate")
    return [tuple(row.get(key) for key in keys) for row in files.read_jsonl(run.metrics)]


def tensors(run: RunLayout, step: int) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(run.checkpoint(step))
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def assert_same(found: RunLayout, expected: RunLayout, step: int) -> None:
    """Assert that two runs have logged the same and have the same weights, bit for bit."""
    assert losses(found) == losses(expected)
    ours, theirs = tensors(found, step), tensors(expected, step)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert found.probe("gradients").read_bytes() == expected.probe("gradients").read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


# --- how a run is ended from outside


@dataclass(frozen=True)
class Started:
    """A training that is under way, started by one of the launchers."""

    process: subprocess.Popen[bytes]
    run: RunLayout
    output: Path
    """What it prints, errors included."""
    before: int
    """The last step that was logged when it was started."""

    def ranks(self) -> list[int]:
        """Return the ranks' process ids, in the order of their starts."""
        found = [p for p in psutil.process_iter(["cmdline", "environ"]) if self._is_rank(p)]
        return [p.pid for p in sorted(found, key=lambda p: p.info["environ"]["RANK"])]

    def trained(self, steps: int) -> bool:
        """Whether so many steps have been trained since the start; fail if the training has ended."""
        assert self.process.poll() is None, self.output.read_text()
        return last_step(self.run) >= self.before + steps

    def wait(self) -> int:
        """Wait for the launcher and for every rank; return the launcher's exit code."""
        status = self.process.wait(SECONDS)
        wait_until(lambda: not self.ranks())
        return status

    def _is_rank(self, process: psutil.Process) -> bool:
        variables = process.info["environ"] or {}
        return "RANK" in variables and f"output={self.run.root.parents[2]}" in (process.info["cmdline"] or [])


Start = Callable[[str], Started]

STARTER = """
import sys
from rankdrift.studies import launcher
launcher.GRACE = 4.0
sys.exit(launcher.run_ranks(2, sys.argv[1:]))
"""
IMPATIENT = """
import sys
from datetime import timedelta
from rankdrift.cli.main import main
from rankdrift.training import collectives
collectives.TIMEOUT = timedelta(seconds=8)  # another test file may be running
sys.exit(main(["train", *sys.argv[1:]]))
"""
OURS = [sys.executable, "-c", STARTER, sys.executable]
LAUNCHERS = {
    "ours": [*OURS, "-m", "rankdrift.cli.train"],
    "ours, impatient": [*OURS, "-c", IMPATIENT],
    "deepspeed": [
        *(str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"),
        str(HERE.parent.parent / "launch" / "train.py"),
    ],
}


def last_step(run: RunLayout) -> int:
    return max((row["step"] for row in files.read_jsonl(run.metrics)), default=0)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the one run that is ended in many ways."""
    return tmp_path_factory.mktemp("ended")


@pytest.fixture(scope="module")
def start(tiny: Path, ended: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start that run, or go on with it."""
    folder = tmp_path_factory.mktemp("starts")
    (folder / "recipe.yaml").write_text(RECIPE)
    common = ["--config", str(CONFIG), "--experiment", str(folder / "recipe.yaml")]
    overrides = [f"output={ended}", f"training.steps={STEPS}"]
    started: list[Started] = []

    def begin(launcher: str) -> Started:
        run, output = run_of(ended), folder / f"{len(started)}.log"
        with output.open("wb") as handle:
            command = [*LAUNCHERS[launcher], *common, *overrides]
            process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT)
        started.append(Started(process, run, output, last_step(run)))
        return started[-1]

    yield begin
    for each in started:
        for pid in [each.process.pid, *each.ranks()]:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        each.process.wait()


def assert_saved_and_stopped(run: RunLayout) -> None:
    status, newest = files.read_json(run.status), complete_steps(run.checkpoints)[-1]
    assert (status["state"], status["step"]) == ("preempted", newest)
    assert last_step(run) == newest
    Manifest.read(run.checkpoint(newest)).check_contents(run.checkpoint(newest))


def test_at_start_up_it_stops_at_once(start: Start) -> None:
    training = start("ours")
    saved = complete_steps(training.run.checkpoints)
    wait_until(lambda: len(training.ranks()) == 2)
    training.process.send_signal(signal.SIGTERM)
    assert training.wait() == 75
    assert complete_steps(training.run.checkpoints) == saved


def test_while_the_model_is_loaded_it_stops(start: Start) -> None:
    training = start("ours")
    log = training.run.log
    size = log.stat().st_size if log.exists() else 0
    wait_until(lambda: log.exists() and log.stat().st_size > size)
    training.process.send_signal(signal.SIGTERM)
    assert training.wait() == 75
    assert "Traceback" not in training.output.read_text()


def test_a_stopped_launcher_stops_its_ranks(start: Start) -> None:
    training = start("ours")
    wait_until(lambda: training.trained(2))
    training.process.send_signal(signal.SIGTERM)
    assert training.wait() == 75
    assert_saved_and_stopped(training.run)
    said = training.output.read_text()
    assert said.count("rankdrift train: stopped: ") == 1
    assert "Traceback" not in said


def test_ranks_whose_launcher_is_killed_save_and_stop(start: Start) -> None:
    training = start("ours")
    wait_until(lambda: training.trained(2))
    training.process.kill()
    assert training.wait() == -signal.SIGKILL
    assert_saved_and_stopped(training.run)


def test_ranks_whose_deepspeed_launcher_is_killed_save_and_stop(start: Start) -> None:
    training = start("deepspeed")
    wait_until(lambda: training.trained(2))
    launcher = psutil.Process(training.ranks()[0]).parent()
    assert launcher is not None
    launcher.kill()
    training.wait()
    assert_saved_and_stopped(training.run)


def test_deepspeed_returns_the_exit_code_of_a_run_that_was_stopped(start: Start) -> None:
    training = start("deepspeed")
    wait_until(lambda: training.trained(2))
    training.run.stop_request.touch()
    assert training.wait() == 75
    assert not training.run.stop_request.exists()
    assert_saved_and_stopped(training.run)


def test_a_rank_does_not_wait_for_ever_for_one_that_hangs(start: Start) -> None:
    training = start("ours, impatient")
    wait_until(lambda: training.trained(2))
    os.kill(training.ranks()[1], signal.SIGSTOP)
    assert training.wait() == 4
    said = training.output.read_text()
    assert said.count("rankdrift train: lost: rank 1 on ") == 1, said
    assert "has been stopped (SIGSTOP)" in said
    assert "Traceback" not in said
    assert "Timed out" in training.run.log.read_text()


# --- one process group, many runs: who is asked what, and when


@pytest.fixture(scope="module")
def jobs(tiny: Path, ended: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every case and how it went on, and the run above, gone on with, beside one that nobody ended."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "recipe.yaml").write_text(RECIPE)
    shared = {"recipe": str(folder / "recipe.yaml"), "config": str(CONFIG)}
    todo = []
    for name, (requests, end, _) in CASES.items():
        job = {**shared, "name": name, "output": str(folder / name.replace(" ", "-")), "steps": 6}
        fails = 3 if "no space" in name else None
        todo.append({**job, "asked": requests, "fails_at": fails})
        if end != "finished":
            todo.append({**job, "name": f"{name}: again", "asked": []})
    for name, output in (("long", folder / "long"), ("long: again", ended)):
        todo.append({**shared, "name": name, "output": str(output), "steps": STEPS, "asked": []})
    path = folder / "jobs.json"
    path.write_text(json.dumps(todo))
    assert run_ranks(2, [sys.executable, str(HERE / "preempt_worker.py"), str(path)]) == 0
    return {job["name"]: job for job in json.loads(path.read_text())}


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_do_what_one_is_asked(name: str, jobs: dict[str, dict[str, Any]]) -> None:
    _, end, saved = CASES[name]
    states = {"finished": "finished", "Preempted": "preempted", "UserError": "training"}
    assert jobs[name]["ended"] == [end, end]
    assert jobs[name]["saved"] == saved
    assert jobs[name]["state"] == states[end.split(":")[0]]
    assert jobs[name]["files"] == []


@pytest.mark.parametrize("name", CASES)
def test_in_the_end_it_equals_one_that_nobody_asked(name: str, jobs: dict[str, dict[str, Any]]) -> None:
    last = jobs.get(f"{name}: again", jobs[name])
    assert last["ended"] == ["finished", "finished"]
    assert_same(run_of(Path(last["output"])), run_of(Path(jobs["nothing"]["output"])), 6)


def test_ended_in_every_way_it_equals_one_that_nobody_ended(jobs: dict[str, dict[str, Any]]) -> None:
    again = jobs["long: again"]
    assert again["ended"] == ["finished", "finished"]
    assert_same(run_of(Path(again["output"])), run_of(Path(jobs["long"]["output"])), STEPS)
