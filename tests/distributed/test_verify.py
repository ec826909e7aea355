"""What real training leaves is found well, by every check; the closed list of names is what it contains."""

from __future__ import annotations

import pickletools
import random
import zipfile
from pathlib import Path

import pytest
from ranks import RECIPE, job, run_of, train_jobs

from rankdrift.errors import IntegrityError
from rankdrift.export.consolidate import Options, consolidate_run
from rankdrift.layout import RunLayout
from rankdrift.verify.verify import Verdict, find, verify
from rankdrift.zero_checkpoint import torch_file
from rankdrift.zero_checkpoint.shards import open_checkpoint

pytestmark = pytest.mark.distributed

TRAINING = {
    **{"steps": 4, "global_batch": 4, "micro_batch": 2, "learning_rate": 2e-3, "weight_decay": 0.01},
    **{"eval_rows": 4, "save_every": 2, "precision": "fp32"},
}
LORA, BF16 = ["method.name=lora", "method.targets=both"], "training.precision=bf16"
RUNS: dict[str, tuple[int, list[str]]] = {
    "full-0": (0, []),
    "full-2": (2, []),
    "full-3-bf16": (3, [BF16]),
    "lora-2-bf16": (2, [*LORA, BF16]),
    "lora-3": (3, LORA),
}


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunLayout]:
    """Every run, trained on two ranks and exported."""
    folder = tmp_path_factory.mktemp("verify")
    jobs = [job(folder, name, stage, *overrides) for name, (stage, overrides) in RUNS.items()]
    train_jobs(folder, RECIPE | {"training": TRAINING}, [(2, jobs)])
    return {name: run_of(folder, name) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_well(runs: dict[str, RunLayout], name: str) -> None:
    run = runs[name]
    consolidate_run(run)
    kinds = 1
    if name.startswith("lora"):
        consolidate_run(run, options=Options(merge=True))
        kinds = 2
    lines: list[str] = []
    assert verify(find(run.root, lines.append), lines.append, reload=True) is Verdict.WELL, "\n".join(lines)
    assert lines[-1] == f"2 checkpoints, {2 * kinds} exports: all well"
    assert sum("moments: OK" in line for line in lines) == 2
    assert sum("logits: OK" in line for line in lines) == 2 * kinds


def names_in(path: Path) -> set[tuple[str, str]]:
    """The names a pickle refers to, by Python's own disassembler."""
    with zipfile.ZipFile(path) as file:
        member = next(name for name in file.namelist() if name.endswith("/data.pkl"))
        found = (arg for opcode, arg, _ in pickletools.genops(file.read(member)) if opcode.name == "GLOBAL")
        return {tuple(name.split(" ")) for name in found}


def test_the_stand_ins_are_for_the_classes_that_checkpoints_contain(runs: dict[str, RunLayout]) -> None:
    paths = [path for run in runs.values() for path in run.checkpoints.rglob("*.pt")]
    found = set().union(*map(names_in, paths))
    stand_ins = {name for _, name in torch_file._STAND_INS}
    of_deepspeed = {f"{module}.{name}" for module, name in found if module.startswith("deepspeed")}
    of_fp16 = {"deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"}  # not trained on a CPU
    of_older_pythons = {"builtins.getattr"}
    assert of_deepspeed == stand_ins - of_fp16 - of_older_pythons


@pytest.mark.parametrize("name", RUNS)
def test_a_real_file_changed_at_random_is_refused_or_the_same(runs: dict[str, RunLayout], name: str) -> None:
    draw = random.Random(name)
    folder = runs[name].checkpoint(2)
    expected = {key: tensor.spans for key, tensor in open_checkpoint(folder).tensors.items()}
    refused = 0
    for path in sorted(folder.glob("*.pt")):
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as file:
            ends = [info.header_offset for info in file.infolist()]
        for _ in range(40):
            changed = bytearray(whole)
            start = draw.choice([*ends, len(whole) - 2000])  # headers, the pickle, the directory
            place = min(start + draw.randrange(2000), len(whole) - 1)
            changed[place] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            try:
                found = {key: tensor.spans for key, tensor in open_checkpoint(folder).tensors.items()}
            except IntegrityError:
                refused += 1
            else:
                assert found == expected, (path.name, place)
        path.write_bytes(whole)
    assert refused
