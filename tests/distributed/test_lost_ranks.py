"""A rank that is lost ends all ranks soon, by name; what has been saved is whole, and the run goes on.

One run is ended in every way, each start taking it a few steps further.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ranks import CONFIGS, HERE, interrupted, train_jobs

from rankdrift import files
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps
from rankdrift.zero_checkpoint.shards import open_checkpoint

pytestmark = pytest.mark.distributed

SECONDS = 300.0  # until what must happen has happened
PROMISED = 60.0
SILENCE, HANG = float(os.environ.get("RANKDRIFT_SILENCE", "6")), 8.0
STEPS, SAVE_EVERY = 60, 3
HOST = socket.gethostname()
OURS = [sys.executable, "-c", "import sys; from rankdrift.studies.launcher import run_ranks\n"
        "sys.exit(run_ranks(2, sys.argv[1:]))", sys.executable]  # fmt: skip
RESTARTING = """
import os, sys
from pathlib import Path
from rankdrift.layout import RunLayout
from rankdrift.studies.restarts import Restarts, launch_to_the_end
launch_to_the_end(2, sys.argv[1:], RunLayout(Path(os.environ["RUN"])), Restarts(3, elastic=True), print)
"""
LAUNCHERS = {
    "restarting": [sys.executable, "-u", "-c", RESTARTING],
    "ours": [*OURS, "-m", "rankdrift.cli.train"],
    "ours, faulty": [*OURS, str(HERE / "faulty_rank.py")],
    "deepspeed": [
        *(str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"),
        str(HERE.parent.parent / "launch" / "train.py"),
    ],
}


@dataclass(frozen=True)
class Started:
    """A training that is under way."""

    process: subprocess.Popen[bytes]
    run: RunLayout
    output: Path
    before: int
    """The newest checkpoint when it was started."""

    def processes(self) -> list[psutil.Process]:
        """Return all processes of it but the launcher."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = [p for p in psutil.process_iter(["environ"]) if self._belongs(p)]
            return sorted(found, key=lambda p: p.info["environ"]["RANK"])
        return self.processes()

    def ranks(self) -> list[psutil.Process]:
        return [p for p in self.processes() if "rankdrift.heartbeat.guard" not in p.cmdline()]

    def guards(self) -> list[psutil.Process]:
        return [p for p in self.processes() if "rankdrift.heartbeat.guard" in p.cmdline()]

    def trained(self, steps: int) -> bool:
        """Whether so many steps have been trained, and one saved, since the start."""
        assert self.process.poll() is None, self.output.read_text()
        last = max((row["step"] for row in files.read_jsonl(self.run.metrics)), default=0)
        return last >= self.before + steps and (complete_steps(self.run.checkpoints) or [0])[-1] > self.before

    def wait(self) -> tuple[int, float]:
        """Wait until nothing is left; return the launcher's exit code and the seconds that took."""
        began = time.monotonic()
        status = self.process.wait(SECONDS)
        wait_until(lambda: not self.processes())
        seconds = time.monotonic() - began
        print(f"ended after {seconds:.1f} s")
        return status, seconds

    def said(self) -> str:
        return self.output.read_text()

    def _belongs(self, process: psutil.Process) -> bool:
        variables = process.info["environ"] or {}
        return variables.get("LOST_RANKS") == self.output.name and "RANK" in variables


Start = Callable[..., Started]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ended")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(interrupted(steps=STEPS, save_every=SAVE_EVERY, eval_every=STEPS, probe_every=2))
    return path


@pytest.fixture(scope="module")
def start(tiny: Path, ended: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    folder = tmp_path_factory.mktemp("starts")
    started: list[Started] = []

    def begin(launcher: str, into: Path = ended, steps: int = STEPS, **variables: object) -> Started:
        run = StudyLayout(into / "s").run("a-seed42")
        output = folder / f"{len(started)}.log"
        given = {"RANKDRIFT_SILENCE": SILENCE, "RANKDRIFT_HANG": 600} | variables
        given |= {"RUN": run.root, "LOST_RANKS": output.name}
        environment = os.environ | {name: str(value) for name, value in given.items()}
        command = [*LAUNCHERS[launcher], "--config", str(CONFIGS / "zero2.json")]
        command += ["--experiment", str(recipe), f"output={into}", f"training.steps={steps}"]
        with output.open("wb") as handle:
            process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, env=environment)
        before = (complete_steps(run.checkpoints) or [0])[-1]
        started.append(Started(process, run, output, before))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.wait()
        for left in each.processes():
            left.kill()


def assert_lost(training: Started, rank: int, how: str, state: str = "lost") -> None:
    """Assert that exactly one line names the rank, and that it is kept; and that the checkpoint is whole."""
    lines = [line for line in training.said().splitlines() if line.startswith(f"rankdrift train: {state}: ")]
    assert len(lines) == 1, training.said()
    assert f"rank {rank} on {HOST} {how}" in lines[0]
    status = files.read_json(training.run.status)
    assert (status["state"], status["rank"], status["host"]) == (state, rank, HOST)
    assert status["step"] > training.before
    assert f"rank {rank} on {HOST} {how}" in training.run.log.read_text().splitlines()[-1]
    newest = complete_steps(training.run.checkpoints)[-1]
    assert newest > training.before
    Manifest.read(training.run.checkpoint(newest)).check_contents(training.run.checkpoint(newest))


@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_that_is_killed(start: Start, rank: int) -> None:
    training = start("ours")
    wait_until(lambda: training.trained(4))
    assert len(training.guards()) == 2
    training.ranks()[rank].kill()
    status, seconds = training.wait()
    assert status == 4
    assert seconds < 15
    assert_lost(training, rank, "died")
    assert "Traceback" not in training.said()


@pytest.mark.parametrize(("launcher", "rank"), [("ours", 0), ("deepspeed", 1)])
def test_a_rank_that_is_stopped(start: Start, launcher: str, rank: int) -> None:
    training = start(launcher)
    wait_until(lambda: training.trained(4))
    training.ranks()[rank].send_signal(signal.SIGSTOP)
    status, seconds = training.wait()
    assert status in (4, 256 - signal.SIGKILL if launcher == "deepspeed" else 4)
    assert SILENCE < seconds < PROMISED
    assert_lost(training, rank, "has been stopped (SIGSTOP) for ")


def test_a_machine_that_is_silent(start: Start) -> None:
    """All that runs of rank 1 stands still, its guard as well, as in a paused virtual machine."""
    training = start("ours")
    wait_until(lambda: training.trained(4))
    for process in (training.ranks()[1], training.guards()[1]):
        process.send_signal(signal.SIGSTOP)
    status, seconds = training.wait()
    assert status == 4
    assert SILENCE < seconds < PROMISED
    assert_lost(training, 1, "has been silent for ")


def test_a_rank_that_raises(start: Start) -> None:
    training = start("ours, faulty", FAULT="raise:12")
    wait_until(lambda: training.trained(8))
    status, seconds = training.wait()
    assert status == 1
    assert seconds < 15
    assert_lost(training, 1, "failed (ZeroDivisionError: of the test; its traceback", "failed")
    assert training.said().count("Traceback (most recent call last)") == 1


def test_a_rank_that_hangs_with_its_threads_alive(start: Start) -> None:
    training = start("ours, faulty", FAULT="hang:5", RANKDRIFT_HANG=HANG)
    wait_until(lambda: training.trained(4))
    status, seconds = training.wait()
    assert status == 4
    assert HANG < seconds < PROMISED
    assert_lost(training, 1, "hangs: nothing done for ")
    assert "in stand_still" in training.said(), "where it stood"


def test_in_the_end_it_equals_a_run_of_which_none_was_lost(
    start: Start, ended: Path, recipe: Path, tmp_path: Path
) -> None:
    jobs = [
        {"recipe": str(recipe), "config": str(CONFIGS / "zero2.json"), "overrides": [f"output={output}"]}
        for output in (ended, tmp_path)
    ]
    train_jobs(tmp_path, {}, [(2, jobs)])
    runs = [StudyLayout(output / "s").run("a-seed42") for output in (ended, tmp_path)]
    logged = [[(row["step"], row["split"], row["loss"]) for row in files.read_jsonl(r.metrics)] for r in runs]
    assert logged[0] == logged[1]
    found, expected = (open_checkpoint(run.checkpoint(STEPS)) for run in runs)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(found.tensor(name).equal(expected.tensor(name)) for name in expected.tensors)


def test_a_run_goes_on_with_the_ranks_that_are_left(start: Start, tmp_path: Path) -> None:
    """A study's start of a run, one of whose ranks is killed: the other one trains it to its end."""
    steps = 9
    training = start("restarting", tmp_path, steps)
    wait_until(lambda: training.trained(4))
    training.ranks()[1].kill()
    assert training.wait()[0] == 0, training.said()
    assert "restart 1 of 3 on 1 ranks" in training.said()
    assert Manifest.read(training.run.checkpoint(steps)).world_size == 1
    assert files.read_json(training.run.status)["state"] == "finished"
