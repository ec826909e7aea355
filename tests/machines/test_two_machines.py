"""One run on two machines without a common folder: launched, saved, resumed, gathered, as on one machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vms import ROOT, Machine, Machines, machines

from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.manifest import Manifest

pytestmark = [pytest.mark.machines, pytest.mark.distributed]

RECIPE: dict[str, Any] = {
    "study": "s",
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic"], "train_limit": 40, "validation_limit": 4},
    "method": {"name": "full"},
    "training": {
        "save_every": 2,
        "global_batch": 4,
        "micro_batch": 2,
        "learning_rate": 2e-3,
        "precision": "fp32",
        "eval_rows": 2,
        "probe_every": 0,
    },
}
CLOSE = 1e-6
"""Of losses: sums over ranks are taken in another order at most."""
TIMEOUT = 280.0
thorough = pytest.mark.skipif(
    os.environ.get("RANKDRIFT_TEST_MACHINES") != "all",
    reason="takes minutes: set RANKDRIFT_TEST_MACHINES=all",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two machines, whose folder holds the recipe."""
    for made in machines(tmp_path_factory.mktemp("machines")):
        (made.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        yield made


def training(pair: Machines, stage: int, arm: str, steps: int = 4) -> list[str]:
    """Return the arguments of a training."""
    config = str(ROOT / "ds_configs" / f"zero{stage}.json")
    recipe = ["--config", config, "--experiment", str(pair.folder / "recipe.yaml")]
    return [*recipe, f"arm={arm}", f"training.steps={steps}"]


def done(machine: Machine, *command: str, folder: Path, timeout: float = TIMEOUT, **environment: str) -> str:
    """Run a command that has to end well; return what it said."""
    status, said = machine.run(*command, folder=folder, timeout=timeout, **environment)
    assert status == 0, said[-6000:]
    return said


def run_of(machine: Machine, arm: str) -> RunLayout:
    """The run as a machine has it."""
    return RunLayout(machine.outputs / "s" / "runs" / f"{arm}-seed42")


def losses(run: RunLayout) -> list[float]:
    """The losses of every step and evaluation, in their order."""
    lines = run.metrics.read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines)]


def test_zero_2_over_ssh_is_as_on_one_machine_also_after_a_crash_and_is_gathered(pair: Machines) -> None:
    folder, (first, second) = pair.folder, pair.machines
    one, two = run_of(first, "one"), run_of(first, "two")
    torchrun = ["torchrun", "--nproc_per_node", "2", "-m", "rankdrift.cli.train"]
    done(first, *torchrun, *training(pair, 2, "one"), folder=folder)
    launch = ["rankdrift", "launch", "--hostfile", "hosts", "--", *training(pair, 2, "two")]
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
