"""Runs on two machines whose ranks or hosts are lost, started again by the command that launched them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from two_machines import thorough, training
from vms import Machines, machines

from rankdrift import files
from rankdrift.layout import RunLayout

pytestmark = [pytest.mark.machines, pytest.mark.distributed, pytest.mark.timeout(1200), thorough]

CLOSE = 1e-6
"""Of losses: sums over ranks are taken in another order at most."""
STEPS, SECONDS = 30, 280.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    yield from machines(tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="module")
def losses_of_one(pair: Machines) -> list[float]:
    """The losses of a run of one rank that nobody ended."""
    asked = [*training(pair.folder, 2, "one", STEPS), f"output={pair.folder / 'shared'}"]
    status, said = pair[0].run(
        "python", "-m", "rankdrift.cli.train", *asked, folder=pair.folder, timeout=SECONDS
    )
    assert status == 0, said
    return losses(shared(pair, "one"))


def shared(pair: Machines, arm: str) -> RunLayout:
    return RunLayout(pair.folder / "shared" / "s" / "runs" / f"{arm}-seed42")


def losses(run: RunLayout) -> list[float]:
    return [row["loss"] for row in files.read_jsonl(run.metrics)]


def launched(pair: Machines, arm: str, output: Path, *options: str) -> subprocess.Popen[str]:
    """Launch a run from the first machine."""
    train = [*training(pair.folder, 2, arm, STEPS), f"output={output}"]
    command = ["rankdrift", "launch", "--hostfile", "hosts", *options, "--", *train]
    return pair[0].popen(*command, folder=pair.folder, RANKDRIFT_SILENCE="6")


def steps_of(run: RunLayout) -> int:
    return len(files.read_jsonl(run.metrics)) if run.metrics.exists() else 0


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.1)


def ended(job: subprocess.Popen[str]) -> str:
    """Wait for a job that has to end well; return what it said."""
    said = job.communicate(timeout=SECONDS)[0]
    print(said)
    assert job.returncode == 0, said
    return said


def test_a_host_whose_rank_is_killed_is_left_out_where_that_is_asked(
    pair: Machines, losses_of_one: list[float]
) -> None:
    run = shared(pair, "elastic")
    job = launched(pair, "elastic", pair.folder / "shared", "--max-restarts", "2", "--elastic")
    wait_for("training", lambda: steps_of(run) >= 5)
    pair[1].do("pkill -9 -f 'rankdrift.cli.trai[n] --local_rank'")
    said = ended(job)
    assert "restart 1 of 2 on 1 ranks (vm1) in 2 s, from step " in said
    assert "restart 2" not in said
    assert losses(run) == pytest.approx(losses_of_one, abs=CLOSE)


def test_a_host_that_does_not_answer_is_left_out_where_that_is_asked(
    pair: Machines, losses_of_one: list[float]
) -> None:
    run = shared(pair, "cut")
    job = launched(pair, "cut", pair.folder / "shared", "--max-restarts", "2", "--elastic")
    wait_for("training", lambda: steps_of(run) >= 5)
    pair.cut(1)
    try:
        said = ended(job)
    finally:
        pair.mend(1)
    assert "restart 1 of 2 on 1 ranks (vm1)" in said
    assert losses(run) == pytest.approx(losses_of_one, abs=CLOSE)


def test_a_host_that_comes_back_is_waited_for(pair: Machines, losses_of_one: list[float]) -> None:
    """Without a common folder: each machine's part of the last checkpoint is needed."""
    run = RunLayout(pair[0].outputs / "s" / "runs" / "back-seed42")
    job = launched(pair, "back", pair.folder / "outputs", "--max-restarts", "1")
    wait_for("training", lambda: steps_of(run) >= 5)
    pair.cut(1)
    wait_for("the end of all ranks", lambda: not pair[0].ranks() and not pair[1].ranks())
    time.sleep(15)
    assert job.poll() is None
    pair.mend(1)
    said = ended(job)
    assert "restart 1 of 1 on 2 ranks (vm1, vm2)" in said
    assert losses(run) == pytest.approx(losses_of_one, abs=CLOSE)
