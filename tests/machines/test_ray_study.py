"""A study of twelve cells on three machines without a common folder, also where much of it is killed.

Told at the end: the seconds of each part. Its tables are those of the same study on one machine, bit for bit,
but for what was measured of time and memory.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from two_machines import thorough
from vms import Machine, Machines, machines

pytest.importorskip("ray")
pytestmark = [pytest.mark.machines, pytest.mark.distributed, pytest.mark.timeout(3600)]

ADDRESS = "10.99.0.1:6379"
SEEDS = [1, 2, 3, 4, 5, 6]
RECIPE = {
    "study": "cells",
    "model": {"name": "tiny", "head": "classifier"},
    "data": {"tasks": ["topic"], "train_limit": 24, "validation_limit": 6},
    "training": {"steps": 4, "global_batch": 4, "save_every": 2, "eval_rows": 4},
    "scoring": {"limit": 4, "text_limit": 2},
    "analysis": {"drift": {"rows": 4}, "checkpoint_gradients": {"rows": 2}},
    "arms": {"full": {"method": {"name": "full"}}, "lora": {"method": {"name": "lora", "rank": 2}}},
    "seeds": SEEDS,
}
MEASURED = ("seconds", "memory_", "tokens_per_second", "teraflops", "mfu")
"""How columns of time and memory begin."""
TIMEOUT = 1500.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Three machines, each with a folder of its own for Ray as well."""
    folder = tmp_path_factory.mktemp("ray")
    Path("/tmp/ray").mkdir(exist_ok=True)
    binds = {}
    for number in range(3):
        own = folder / f"ray{number}"
        own.mkdir()
        binds[number] = {own: Path("/tmp/ray")}
    yield from machines(folder, 3, binds=binds)


def start(three: Machines, number: int) -> None:
    """Start a machine's node; each has its own study folders, which are called alike."""
    more = ["start"] if number == 0 else ["join", ADDRESS]
    ip = ["--ip", f"10.99.0.{number + 1}"]
    own = ["--name", f"vm{number + 1}", "--slots", "1", "--memory", "128", *ip]
    command = ["rankdrift", "cluster", *more, *own]
    status, said = three[number].run(*command, folder=three.folder)
    assert status == 0, said


def driver(three: Machines) -> subprocess.Popen[str]:
    """Start the study on the first machine."""
    (three.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command = ["rankdrift", "study", "run", "--ray", ADDRESS, "--experiment", "recipe.yaml", "--ranks", "1"]
    return three[0].popen(*command, folder=three.folder)


def statuses(machine: Machine) -> dict[str, dict[str, Any]]:
    """What the cells say of themselves on a machine."""
    found = {}
    for path in machine.outputs.glob("cells/runs/*/cell.json"):
        with contextlib.suppress(json.JSONDecodeError, FileNotFoundError):
            found[path.parent.name] = json.loads(path.read_text())
    return found


def done(machine: Machine) -> set[str]:
    return {name for name, told in statuses(machine).items() if told["state"] == "done"}


def kill_all(machine: Machine, what: str) -> None:
    """End all processes of a machine whose command has a word, at once."""
    subprocess.run(machine.inside("pkill", "-KILL", "-f", what), check=False)


def wait_until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.2)


def tables_of(machine: Machine, study: str) -> dict[str, pd.DataFrame]:
    folder = machine.outputs / study / "tables"
    return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


@thorough
@pytest.mark.timeout(1800)
def test_twelve_cells_whatever_is_killed(three: Machines) -> None:
    told: dict[str, float] = {}
    began = time.monotonic()
    for number in range(3):
        start(three, number)
    told["three nodes up"] = time.monotonic() - began
    first, _, third = three.machines

    began = time.monotonic()
    process = driver(three)
    wait_until(lambda: len(done(first)) >= 2)
    told["first two cells"] = time.monotonic() - began
    kill_all(first, "rankdrift study")
    process.wait(30)
    wait_until(lambda: not any(machine.ranks() for machine in three.machines), 60)
    once = {name: told["attempts"] for name, told in statuses(first).items() if told["state"] == "done"}
    assert len(once) >= 2

    began = time.monotonic()
    process = driver(three)
    wait_until(lambda: len(done(first)) >= 5)
    told["driver killed, until three more"] = time.monotonic() - began
    assert {name: statuses(first)[name]["attempts"] for name in once} == once  # not done again

    wait_until(lambda: bool(third.ranks()))
    there = {name for name, told in statuses(third).items() if told["state"] == "running"}
    began = time.monotonic()
    kill_all(third, "ray")
    kill_all(third, "rankdrift")
    wait_until(lambda: there <= done(first))
    told["node killed, until its cell is done elsewhere"] = time.monotonic() - began
    assert {statuses(first)[name]["node"] for name in there} <= {"vm1", "vm2"}

    began = time.monotonic()
    for machine in three.machines:
        kill_all(machine, "raylet")
        kill_all(machine, "gcs_server")
    said = process.communicate(timeout=300)[0]
    told["head killed, until the driver has ended"] = time.monotonic() - began
    assert process.returncode == 1, said[-3000:]
    assert "Failed to connect to GCS" in said  # Ray ends a program that has lost its head for 60 s
    for machine in three.machines:
        machine.run("rankdrift", "cluster", "stop", folder=three.folder)
    began = time.monotonic()
    for number in range(3):
        start(three, number)
    process = driver(three)
    said = process.communicate(timeout=TIMEOUT)[0]
    told["started again, until the report"] = time.monotonic() - began
    assert process.returncode == 0, said[-6000:]
    assert len(done(first)) == 12
    assert (first.outputs / "cells" / "report.html").exists()

    command = ["rankdrift", "study", "run", "--experiment", "recipe.yaml", "--ranks", "1", "study=local"]
    began = time.monotonic()
    status, said = first.run(*command, folder=three.folder, timeout=TIMEOUT)
    told["the same on one machine"] = time.monotonic() - began
    assert status == 0, said[-3000:]
    print(json.dumps({name: round(seconds, 1) for name, seconds in told.items()}, indent=1))
    local, spread = tables_of(first, "local"), tables_of(first, "cells")
    assert set(local) == set(spread)
    for name, table in local.items():
        assert list(table.columns) == list(spread[name].columns)
        assert len(table) == len(spread[name])
        for column in (name for name in table.columns if not name.startswith(MEASURED)):
            assert table[column].map(repr).equals(spread[name][column].map(repr)), (name, column)


@thorough
def test_a_cell_that_is_larger_than_a_machine(three: Machines) -> None:
    """Two ranks on two machines, whose checkpoints come together on the first: as two ranks on one."""
    for machine in three.machines:
        machine.run("rankdrift", "cluster", "stop", folder=three.folder)
    for number in (0, 1):
        start(three, number)
    first, second = three[0], three[1]
    (three.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"seeds": [1]}))
    command = ["rankdrift", "study", "run", "--experiment", "recipe.yaml", "--ranks", "2"]
    for more in (["study=wide", "--ray", ADDRESS], ["study=narrow"]):
        began = time.monotonic()
        status, said = first.run(*command, *more, folder=three.folder, timeout=TIMEOUT)
        print(f"{more[0]}: {time.monotonic() - began:.0f} s")
        assert status == 0, said[-6000:]
        if "--ray" in more:
            assert " on vm1+vm2\n" in said or " on vm2+vm1\n" in said
    wide, narrow = tables_of(first, "wide"), tables_of(first, "narrow")
    losses = [
        table.sort_values(["run", "step", "split"])["loss"]
        for table in (wide["training_metrics"], narrow["training_metrics"])
    ]
    assert losses[0].to_numpy() == pytest.approx(losses[1].to_numpy(), abs=1e-6)
    assert set(wide) == set(narrow)
    assert {name: len(table) for name, table in wide.items()} == {
        name: len(table) for name, table in narrow.items()
    }
    parts = [
        list(machine.outputs.glob("wide/runs/*/checkpoints/*/*optim_states.pt"))
        for machine in (first, second)
    ]
    assert all(parts)
