"""The local executor: everything once, never more slots than there are, failures apart, nobody left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from local_tasks import fail, note

from rankdrift.errors import IntegrityError, RankError, UserError
from rankdrift.studies.executors import Outcome, Task
from rankdrift.studies.executors.local import Local


def outcomes(executor: Local, tasks: Sequence[Task]) -> dict[str, Outcome]:
    begun: list[str] = []
    found = {
        outcome.task.name: outcome
        for outcome in executor.carry_out(tasks, lambda task, node: begun.append(task.name))
    }
    assert sorted(begun) == sorted(found) == sorted(task.name for task in tasks)
    return found


def spans(folder: Path) -> list[list[str]]:
    return [path.read_text().split(maxsplit=4) for path in sorted(folder.iterdir())]


def test_what_fills_the_machine_runs_here_in_turn(tmp_path: Path) -> None:
    tasks = [Task(name, note, (tmp_path, name), slots=2) for name in "abc"]
    found = outcomes(Local(3), tasks)
    assert [found[name].value for name in "abc"] == ["a", "b", "c"]
    assert {line[2] for line in spans(tmp_path)} == {str(os.getpid())}
    begun = [float(line[0]) for line in spans(tmp_path)]
    assert begun == sorted(begun)


def test_side_by_side_each_has_its_own_part_of_the_machine(tmp_path: Path) -> None:
    """At no time more slots are taken than there are, no GPU twice; smaller tasks fill what is left."""
    (tmp_path / "out").mkdir()
    sizes = {"a": 2, "b": 1, "c": 1, "d": 1}
    tasks = [
        Task(name, note, (tmp_path / "out", name, 0.5), slots=size, log=tmp_path / f"{name}.log")
        for name, size in sizes.items()
    ]
    found = outcomes(Local(3, gpus=("4", "5", "7")), tasks)
    assert all(outcome.error is None and outcome.seconds >= 0.5 for outcome in found.values())
    lines = {name: (tmp_path / "out" / name).read_text().split(maxsplit=4) for name in sizes}
    assert len({line[2] for line in lines.values()} | {str(os.getpid())}) == 5
    gpus = {name: set(line[4].strip().split(",")) for name, line in lines.items()}
    assert {name: len(of) for name, of in gpus.items()} == sizes
    for one in sizes:
        together = [
            other
            for other in sizes
            if float(lines[other][0]) < float(lines[one][1]) and float(lines[one][0]) < float(lines[other][1])
        ]
        taken = [gpu for other in together for gpu in gpus[other]]
        assert gpus[one] <= {"4", "5", "7"}
        if set(together) == {"a", "b"} or one == "a":
            assert len(taken) == len(set(taken)) <= 3
    assert (tmp_path / "a.log").read_text() == "noted a\n"


def test_without_gpus_each_has_its_own_cores(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("one core cannot be divided")
    outcomes(Local(2), [Task(name, note, (tmp_path, name)) for name in "ab"])
    first, second = (set(line[3].split(",")) for line in spans(tmp_path))
    assert not first & second
    assert len(first | second) == cores


@pytest.mark.parametrize("slots", [1, 4])
def test_a_failure_is_told_and_stops_no_other(tmp_path: Path, slots: int) -> None:
    tasks = [
        Task("user", fail, ("user",)),
        Task("damaged", fail, ("damaged",)),
        Task("a", note, (tmp_path, "a")),
    ]
    found = outcomes(Local(slots), tasks)
    assert (type(found["user"].error), str(found["user"].error)) == (UserError, "it is user")
    assert type(found["damaged"].error) is IntegrityError
    assert found["a"].value == "a"


def test_a_process_that_says_nothing_is_told_of() -> None:
    found = outcomes(Local(2), [Task("killed", fail, ("killed",)), Task("other", fail, ("other",))])
    assert isinstance(found["killed"].error, RankError)
    assert "SIGKILL" in str(found["killed"].error)
    assert str(found["other"].error) == "ZeroDivisionError: it is other"


def test_more_slots_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: asks for 3 slots, there are 2"):
        list(Local(2).carry_out([Task("a", note, (tmp_path, "a"), slots=3)], lambda task, node: None))
    assert not list(tmp_path.iterdir())


DRIVER = """
import signal, sys, time
from pathlib import Path
from rankdrift.studies.executors import Task
from rankdrift.studies.executors.local import Local
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts tests behind it
tasks = [Task(str(n), time.sleep, (60,)) for n in range(2)]
for outcome in Local(2).carry_out(tasks, lambda task, node: Path(sys.argv[1], task.name).touch()):
    print(outcome)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nobody_outlives_the_driver(tmp_path: Path, number: signal.Signals) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    children = psutil.Process(driver.pid).children(recursive=True)
    wait_until(lambda: all(child.num_threads() > 0 for child in children))
    time.sleep(1.0)  # until they have asked to end with their parent
    driver.send_signal(number)
    driver.wait(20)
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def wait_until(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)
