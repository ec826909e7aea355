"""Kill a training run again and again, at random instants, and see that nothing is ever lost.

``python kill_campaign.py FOLDER [--kills 200] [--seed N] [--config ds_configs/zero2.json] [--method full]``

A run of the tiny model that saves after every step (and rotates its checkpoints) is started, and one of its
ranks, or its launcher, is killed with SIGKILL after a random time. Then, every time:

- all its processes are gone within a minute;
- the newest complete checkpoint verifies, byte by byte, and equals that of an uninterrupted run bit for bit;
- the next start resumes from it, and what it logs equals what the uninterrupted run logged.

A run that reaches its end is compared as a whole and started anew. Starting Python and DeepSpeed takes ten
seconds, so that is done once here, and every process is forked from it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import math
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from forked import free_port, import_all
from ranks import interrupted

from rankdrift import files
from rankdrift.cli.main import main as command
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.studies import launcher
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps, newest
from rankdrift.zero_checkpoint.optimizer_state import open_training_state

RANKS = 2
STEPS = 12
STARTING = 0.15  # share of kills that may come before the first save
PATIENCE = 60.0  # seconds until every process of a killed run must be gone
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """How every run of the campaign is trained."""

    recipe: Path
    config: Path
    method: str

    def arguments(self, output: Path, *overrides: str) -> list[str]:
        shared = ["train", "--config", str(self.config), "--experiment", str(self.recipe)]
        return [*shared, f"output={output}", f"method.name={self.method}", *overrides]


def start(arguments: list[str], log: Path) -> tuple[int, list[int]]:
    """Fork a launcher that forks the ranks; return the process ids."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            return parent, [int(line) for line in pipe]
    os.close(reading)
    port = free_port()
    ranks = [fork_rank(rank, port, arguments, log, writing) for rank in range(RANKS)]
    os.write(writing, "".join(f"{rank}\n" for rank in ranks).encode())
    os.close(writing)
    wait_as_launcher(set(ranks))
    os._exit(0)


def wait_as_launcher(ranks: set[int]) -> None:
    """Wait for the ranks as rankdrift's launcher does: once one has failed, the others have some seconds."""
    deadline = math.inf
    while ranks:
        ended, status = os.waitpid(-1, os.WNOHANG)
        ranks -= {ended}
        if ended and status:
            deadline = min(deadline, time.monotonic() + launcher.GRACE)
        if time.monotonic() > deadline:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
        time.sleep(0.02)


def fork_rank(rank: int, port: int, arguments: list[str], log: Path, pipe: int) -> int:
    child = os.fork()
    if child:
        return child
    os.close(pipe)
    with log.open("a") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    os.environ.update({key: str(value) for key, value in here.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    faulthandler.enable(all_threads=True)
    status = 1
    with contextlib.suppress(BaseException):
        status = command(arguments)
    os._exit(status)


def wait_for_all(pids: list[int]) -> None:
    """Wait until processes are gone; fail, and kill them, where one stays."""
    deadline = time.monotonic() + PATIENCE
    while alive := [pid for pid in pids if not gone(pid)]:
        if time.monotonic() > deadline:
            for pid in alive:
                os.kill(pid, signal.SIGABRT)  # says in the log where it is
            time.sleep(1)
            raise AssertionError(f"processes {alive} live on {PATIENCE:.0f} s after the kill")
        time.sleep(0.02)


def gone(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds: masters and moments."""
    state = open_training_state(folder)
    parts = {"master": state.weights.tensors, **state.moments}
    return {f"{part} {name}": t.load() for part, found in parts.items() for name, t in found.items()}


def logged(run: RunLayout) -> dict[tuple[int, str], float]:
    return {(row["step"], row["split"]): row["loss"] for row in files.read_jsonl(run.metrics)}


class Campaign:
    """One uninterrupted run, and runs that are killed."""

    def __init__(self, folder: Path, job: Job, seed: int) -> None:
        self.folder, self.job, self.random = folder, job, random.Random(seed)
        self.reference = RunLayout(folder / "reference" / "s" / "runs" / "a-seed42")
        self.run = RunLayout(folder / "killed" / "s" / "runs" / "a-seed42")
        self.victims = {"rank 0": 0, "rank 1": 0, "launcher": 0}
        self.before_first_save = self.inside_a_save = self.inside_a_removal = self.finished = 0

    def run_reference(self) -> None:
        """Train without interruption, and take the time."""
        started = time.time()
        parent, ranks = start(self.job.arguments(self.folder / "reference"), self.folder / "reference.log")
        wait_for_all([parent, *ranks])
        assert files.read_json(self.reference.status)["state"] == "finished", self.log("reference")
        saved = [self.reference.checkpoint(step).stat().st_mtime - started for step in (1, STEPS)]
        self.first_save, self.step_seconds = saved[0], (saved[1] - saved[0]) / (STEPS - 1)
        self.losses = logged(self.reference)
        self.tensors = {s: checkpoint_tensors(self.reference.checkpoint(s)) for s in range(1, STEPS + 1)}

    def kill_once(self) -> None:
        """Start or resume the run, kill a part of it, and look at what is left."""
        arguments = self.job.arguments(self.folder / "killed", "training.keep_last=2")
        self.started = time.time()
        parent, ranks = start(arguments, self.folder / "killed.log")
        self.wait_for_an_instant([parent, *ranks])
        victim = self.random.choice(sorted(self.victims))
        pid = parent if victim == "launcher" else ranks[int(victim[-1])]
        if not gone(pid):
            self.victims[victim] += 1
            os.kill(pid, signal.SIGKILL)
        wait_for_all([parent, *ranks])
        self.check()

    def wait_for_an_instant(self, pids: list[int]) -> None:
        """Sleep into a random step of those to come or, some times, until somewhere in the start."""
        if self.random.random() < STARTING:
            time.sleep(self.random.uniform(0, self.first_save))
            return
        step = self.random.randint(newest(self.run.checkpoints) or 0, STEPS)
        while not any(map(gone, pids)) and self.step_now() < step:
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, self.step_seconds))

    def step_now(self) -> int:
        """Return the step that the run of this start has logged last."""
        with contextlib.suppress(UserError, FileNotFoundError, IndexError):
            if self.run.metrics.stat().st_mtime >= self.started:
                return int(files.read_jsonl(self.run.metrics)[-1]["step"])
        return 0

    def check(self) -> None:
        """Compare the newest checkpoint and the log with the uninterrupted run's."""
        step = newest(self.run.checkpoints)
        self.before_first_save += step is None
        self.inside_a_save += any(self.run.checkpoints.glob(".step-*.tmp"))
        self.inside_a_removal += any(self.run.checkpoints.glob(".step-*.old"))
        if step is not None:
            folder = self.run.checkpoint(step)
            Manifest.read(folder).check_contents(folder)
            tensors = checkpoint_tensors(folder)
            assert tensors.keys() == self.tensors[step].keys()
            different = [name for name in tensors if not torch.equal(tensors[name], self.tensors[step][name])]
            assert not different, f"step {step}: {different[:3]} differ from the uninterrupted run's"
            assert len(complete_steps(self.run.checkpoints)) <= 3  # two kept, one not yet removed
        for key, loss in logged(self.run).items():
            assert loss == self.losses[key], f"{key}: {loss} where there was {self.losses[key]}"
        if step == STEPS and files.read_json(self.run.status)["state"] == "finished":
            assert logged(self.run) == self.losses
            self.finished += 1
            shutil.rmtree(self.run.root)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    @property
    def kills(self) -> int:
        return sum(self.victims.values())

    def summary(self, seed: int) -> str:
        stages = f"{self.job.config.stem}, {self.job.method}"
        where = ", ".join(f"{name} {count}" for name, count in self.victims.items())
        return (
            f"{self.kills} kills ({where}; {stages}; seed {seed}): every newest checkpoint verified and was "
            f"resumed bit-equal; {self.inside_a_save} kills inside a save, {self.inside_a_removal} inside a "
            f"removal, {self.before_first_save} before the first save; {self.finished} runs reached their end"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--method", default="full")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # ranks whose launcher is gone are waited for here
    import_all()

    recipe = arguments.folder / "recipe.yaml"
    recipe.write_text(interrupted(steps=STEPS, weight_decay=0.01, eval_every=4, save_every=1))
    campaign = Campaign(arguments.folder, Job(recipe, arguments.config, arguments.method), arguments.seed)
    try:
        campaign.run_reference()
        while campaign.kills < arguments.kills:
            campaign.kill_once()
    except BaseException:
        print(campaign.summary(arguments.seed), campaign.log("killed"), sep="\n", flush=True)
        raise
    print(campaign.summary(arguments.seed), flush=True)


if __name__ == "__main__":
    sys.exit(main())
