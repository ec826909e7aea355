"""Real processes, guards and all, but no torch: each fault ends them all, by name, soon, with its code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rankdrift import files

HOST = socket.gethostname()
SILENCE = 3.0
STARTER = """
import sys
from rankdrift.studies import launcher
launcher.GRACE = 10.0
sys.exit(launcher.run_ranks(3, sys.argv[1:]))
"""
RANK = """
import os, signal, sys, time
from pathlib import Path
import psutil
from rankdrift.cli.main import leave
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.heartbeat.rank import beating

rank = int(os.environ["RANK"])

def stop(name):
    os.kill(int(Path(f"{name}.pid").read_text()), signal.SIGSTOP)

def gone(name):
    try:
        return os.kill(int(Path(f"{name}.pid").read_text()), 0)
    except ProcessLookupError:
        return True

def joined(rank):
    path = Path(f"guard-{rank}.pid")
    return path.exists() and psutil.Process(int(path.read_text())).net_connections("tcp")

def fault(pulse):
FAULT
def train(pulse):
    Path(f"{rank}.pid").write_text(str(os.getpid()))
    Path(f"{rank}.tmp").write_text(str(psutil.Process().children()[0].pid))
    Path(f"{rank}.tmp").rename(f"guard-{rank}.pid")
    pulse.train_in(Path("run"), 500)
    for step in range(1, 50):
        pulse.count(limited=step > 1)
        time.sleep(0.02)
        pulse.step_is_done(step)
    while not all(map(joined, range(3))):
        time.sleep(0.1)
    time.sleep(1)  # all guards have told of this step
    fault(pulse)

try:
    with beating() as pulse:
        train(pulse)
except BaseException as error:
    leave(getattr(error, "exit_code", 1))
leave(0)
"""


@dataclass(frozen=True)
class Ended:
    status: int
    seconds: float
    said: str
    folder: Path

    @property
    def verdicts(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("rankdrift train: ")]


def run(folder: Path, fault: str, **variables: object) -> Ended:
    """Run three ranks with a fault in their 50th step; nothing may be left of them."""
    (folder / "run").mkdir()
    lines = "".join(f"    {line}\n" for line in fault.splitlines())
    given = {"RANKDRIFT_SILENCE": SILENCE, "RANKDRIFT_HANG": 100, "WATCHED": folder} | variables
    environment = os.environ | {name: str(value) for name, value in given.items()}
    command = [sys.executable, "-c", STARTER, sys.executable, "-c", RANK.replace("FAULT\n", lines)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    left = [p.cmdline() for p in psutil.process_iter(["environ"])
            if (p.info["environ"] or {}).get("WATCHED") == str(folder)]  # fmt: skip
    assert left == []
    return Ended(done.returncode, time.monotonic() - began, done.stderr, folder)


FAULTS: dict[str, tuple[str, int, str]] = {
    # what the ranks do; the exit code, and the one line that is printed
    "killed": (
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(90)",
        4,
        "lost: rank 1 on HOST died (killed or crashed: it has said nothing), after step 49",
    ),
    "killed, rank 0": (
        "if rank == 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(90)",
        4,
        "lost: rank 0 on HOST died (killed or crashed: it has said nothing), after step 49",
    ),
    "killed, and its victims notice before": (
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "while not gone(1): time.sleep(0.001)\n"
        "raise RankError('/gloo/ connection reset')",
        4,
        "lost: rank 1 on HOST died (killed or crashed: it has said nothing), after step 49",
    ),
    "killed, then another one": (
        "if rank == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "while not gone(2): time.sleep(0.001)\n"
        "if rank == 0: time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)\n"
        "raise RankError('/gloo/ connection reset')",
        4,
        "lost: rank 2 on HOST died (killed or crashed: it has said nothing), after step 49",
    ),
    "stopped": (
        "if rank == 1: stop(1)\ntime.sleep(90)",
        4,
        "lost: rank 1 on HOST has been stopped (SIGSTOP) for 3 s, after step 49",
    ),
    "silent: its guard is stopped": (
        "if rank == 2: stop('guard-2')\ntime.sleep(90)",
        4,
        "lost: rank 2 on HOST has been silent for 3 s (its machine, or the network to it, is down), after "
        "step 49",
    ),
    "hangs": (
        "if rank == 1: time.sleep(90)\n"
        "for _ in range(rank): pulse.count(True)\n"
        "pulse.count(True); time.sleep(90)",
        4,
        "lost: rank 1 on HOST hangs: nothing done for 2 s, after step 49",
    ),
    "lost the others, who are well": (
        "if rank == 2: raise RankError('/gloo/ no route')\ntime.sleep(90)",
        1,
        "failed: rank 2 on HOST has lost the others, who are all there: /gloo/ no route, after step 49",
    ),
    "raises": (
        "if rank == 1: raise KeyError('x')\ntime.sleep(90)",
        1,
        "failed: rank 1 on HOST failed (KeyError: 'x'; its traceback is in its output), after step 49",
    ),
    "refuses, alone": (
        "if rank == 1: raise UserError('x: no')\ntime.sleep(90)",
        2,
        "failed: rank 1 on HOST failed: x: no, after step 49",
    ),
    "asked to stop, alone": (
        "if rank == 1: raise Preempted('x')\nwhile not gone(1): time.sleep(0.01)\nraise RankError('/gloo/')",
        75,
        "stopped: rank 1 on HOST was asked to stop, after step 49",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_ends_all_ranks(case: str, tmp_path: Path) -> None:
    fault, status, line = FAULTS[case]
    hang = {"RANKDRIFT_HANG": 6} if case == "hangs" else {}
    ended = run(tmp_path, fault, **hang)
    assert ended.status == status, ended.said
    expected = f"rankdrift train: {line}".replace("HOST", HOST)
    assert [_whenever(verdict) for verdict in ended.verdicts] == [_whenever(expected)]
    assert ended.seconds < 60
    if status != 75:
        stored = files.read_json(tmp_path / "run" / "status.json")
        assert (stored["state"], stored["step"]) == ("lost" if status == 4 else "failed", 49)
        kept = f"rank {stored['rank']} on {stored['host']} {stored['how']}"
        assert _whenever(kept) in _whenever(expected)
        assert (tmp_path / "run" / "train.log").read_text().count("ERROR rankdrift.heartbeat: rank ") == 1


def _whenever(text: str) -> str:
    """Leave open for how long it was."""
    return re.sub(r"for \d+ s", "for N s", text)
