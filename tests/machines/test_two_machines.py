"""One run on two machines without a common folder: launched, saved, resumed, gathered, as on one machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_machines import newest_of, run_of, thorough, training
from vms import ROOT, Machine, Machines, machines

from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.manifest import Manifest

pytestmark = [pytest.mark.machines, pytest.mark.distributed, pytest.mark.timeout(1200)]

CLOSE = 1e-6
"""Of losses: sums over ranks are taken in another order at most."""
TIMEOUT = 280.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two machines."""
    yield from machines(tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="module")
def one(pair: Machines) -> RunLayout:
    """The run of two ranks on one machine, by torchrun."""
    torchrun = ["torchrun", "--nproc_per_node", "2", "-m", "rankdrift.cli.train"]
    done(pair[0], *torchrun, *training(pair.folder, 2, "one"), folder=pair.folder)
    return run_of(pair[0], "one")


def done(machine: Machine, *command: str, folder: Path, timeout: float = TIMEOUT, **environment: str) -> str:
    """Run a command that has to end well; return what it said."""
    status, said = machine.run(*command, folder=folder, timeout=timeout, **environment)
    assert status == 0, said[-6000:]
    return said


def losses(run: RunLayout) -> list[float]:
    """The losses of every step and evaluation, in their order."""
    lines = run.metrics.read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines)]


def test_zero_2_over_ssh_is_as_on_one_machine_also_after_a_crash_and_is_gathered(
    pair: Machines, one: RunLayout
) -> None:
    folder, (first, second) = pair.folder, pair.machines
    two = run_of(first, "two")
    launch = ["rankdrift", "launch", "--hostfile", "hosts", "--", *training(pair.folder, 2, "two")]
    done(first, *launch, folder=folder)
    assert losses(two) == pytest.approx(losses(one), abs=CLOSE)
    parts = [Manifest.read_part(run_of(machine, "two").checkpoint(4)) for machine in pair.machines]
    assert [part.here for part in parts] == [0, 1]
    assert [part.host for part in parts[0].parts] == ["vm1", "vm2"]
    assert parts[1].names_here == ("zero_pp_rank_1_mp_rank_00_optim_states.pt",)
    assert not run_of(second, "two").metrics.exists()

    # killed between two machines' renames: one has the newest step, all have the one before
    shutil.rmtree(run_of(second, "two").checkpoint(4))
    before = losses(two)
    done(first, *launch, folder=folder)
    assert "going on from step 2" in two.log.read_text()
    assert losses(two) == before
    assert Manifest.read_part(run_of(second, "two").checkpoint(4)).step == 4

    there = "outputs/s/runs/two-seed42"
    status, said = first.run("rankdrift", "consolidate", there, "--step", "4", folder=folder)
    assert status == 2
    assert "has 2 of the checkpoint's 3 files; node 1 (vm2) holds zero_pp_rank_1" in said
    assert f"rankdrift gather {folder}/{there} --from vm2:{folder}/{there}" in said
    gather = ["rankdrift", "gather", there, "--hostfile", "hosts"]
    said = done(first, *gather, folder=folder)
    assert said.count("1 of 3 files brought; whole now") == 2
    assert done(first, *gather, folder=folder).count(": whole\n") == 2
    for run in ("one", "two"):
        done(first, "rankdrift", "consolidate", f"outputs/s/runs/{run}-seed42", "--step", "4", folder=folder)
    same = [load_file(run.export(4) / "model.safetensors") for run in (one, two)]
    assert all(torch.allclose(same[0][name], same[1][name], atol=CLOSE) for name in same[0])


@thorough
def test_tasks_of_slurm_are_ranks(pair: Machines, one: RunLayout) -> None:
    """Started with the variables that srun sets; there is no Slurm here."""
    folder, first = pair.folder, pair[0]
    started = []
    for node, machine in enumerate(pair.machines):
        said = {"PROCID": node, "NTASKS": 2, "LOCALID": 0, "NODEID": node, "JOB_ID": 77, "STEP_ID": 0}
        said |= {"STEP_NODELIST": "vm[1-2]", "STEP_TASKS_PER_NODE": "1(x2)"}
        variables = {f"SLURM_{name}": str(value) for name, value in said.items()}
        script = ["python", str(ROOT / "launch" / "train.py"), *training(folder, 2, "slurm")]
        started.append(machine.popen(*script, folder=folder, **variables))
    for process in started:
        said_by = process.communicate(timeout=TIMEOUT)[0]
        assert process.returncode == 0, said_by[-6000:]
    assert losses(run_of(first, "slurm")) == pytest.approx(losses(one), abs=CLOSE)
    assert json.loads(run_of(first, "slurm").environment.read_text())["hosts"] == ["vm1", "vm2"]


@thorough
def test_zero_3_without_ssh_is_as_on_one_machine_and_goes_on_with_other_ranks(pair: Machines) -> None:
    folder, (first, second) = pair.folder, pair.machines
    pair.hostfile.write_text("vm1 slots=1\nvm2 slots=1\n")
    torchrun = ["torchrun", "--nproc_per_node", "2", "-m", "rankdrift.cli.train"]
    done(first, *torchrun, *training(folder, 3, "three"), folder=folder)
    alone = ["rankdrift", "launch", "--hostfile", "hosts", "--no-ssh", "--master-addr", "vm1", "--node-rank"]
    started = [
        machine.popen(*alone, str(node), "--", *training(folder, 3, "apart"), folder=folder)
        for node, machine in enumerate(pair.machines)
    ]
    for process in started:
        said = process.communicate(timeout=TIMEOUT)[0]
        assert process.returncode == 0, said[-6000:]
    apart = run_of(first, "apart")
    assert losses(apart) == pytest.approx(losses(run_of(first, "three")), abs=CLOSE)
    held = [
        Manifest.read_part(run_of(machine, "apart").checkpoint(4)).names_here for machine in pair.machines
    ]
    assert [len(names) for names in held] == [2, 2]

    # from the step before, on four ranks instead of two: each needs files of both machines
    before = losses(apart)
    for machine in pair.machines:
        shutil.rmtree(run_of(machine, "apart").checkpoint(4))
    pair.hostfile.write_text("vm1 slots=2\nvm2 slots=2\n")
    launch = ["rankdrift", "launch", "--hostfile", "hosts", "--", *training(folder, 3, "apart")]
    done(first, *launch, "training.micro_batch=1", folder=folder)
    assert re.search("resuming a checkpoint of 2 ranks, ZeRO-3 on 4 ranks", apart.log.read_text())
    assert losses(apart) == pytest.approx(before, abs=CLOSE)
    assert newest_of(second, "apart") == 4


@thorough
def test_where_a_machine_has_lost_its_files_a_run_does_not_begin_anew(pair: Machines) -> None:
    folder, (first, second) = pair.folder, pair.machines
    pair.hostfile.write_text("vm2 slots=1\nvm1 slots=1\n")
    launch = ["rankdrift", "launch", "--hostfile", "hosts", "--", *training(folder, 2, "lost")]
    done(first, *launch, folder=folder)
    assert [newest_of(machine, "lost") for machine in pair.machines] == [4, 4]
    shutil.rmtree(run_of(second, "lost").checkpoints)
    status, said = first.run(*launch, folder=folder, timeout=TIMEOUT)
    assert status == 2
    assert (
        "step-000004: its other files were written on vm2, which do not take part or have lost them" in said
    )
    assert newest_of(first, "lost") == 4
