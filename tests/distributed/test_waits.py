"""A step waits for its device once, whatever the ZeRO stage, method and form of its batches.

Besides, transformers 5 looks at each micro-batch that is filled up whether its positions are those of packed
rows, and DeepSpeed 0.19 looks whether the norm is finite.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import yaml
from ranks import HERE, RECIPE, job, run_ranks

from rankdrift import files

CASES = [
    f"{method}-{packing}-z{stage}"
    for method, packing, stage in itertools.product(("full", "lora"), ("on", "off"), range(4))
]
MICRO_BATCHES = 4
TRAINING = {"steps": 4, "global_batch": 8, "micro_batch": 2, "warmup_steps": 1, "eval_rows": 2}
TRAINING |= {"save_every": 4, "probe_every": 0, "clip": 1.0}


def counted(folder: Path, accelerator: str, precision: str) -> dict[str, dict[str, int]]:
    """Train every case on one rank; return its waits in a step."""
    recipe = RECIPE | {"method": {"rank": 4}, "training": TRAINING | {"precision": precision}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    jobs = []
    for case in CASES:
        method, packing, stage = case.split("-")
        settings = (f"method.name={method}", f"training.packing={packing}")
        jobs.append(job(folder, case, int(stage[1]), *settings))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(
        1, HERE / "waits_worker.py", str(folder / "jobs.json"), str(folder / "waits.json"),
        accelerator=accelerator,
    )  # fmt: skip
    return {
        name.removesuffix("-seed42"): found for name, found in files.read_json(folder / "waits.json").items()
    }


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    return counted(tmp_path_factory.mktemp("waits"), "cpu", "fp32")


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_once(waits: dict[str, dict[str, int]], case: str) -> None:
    packed, stage = "-on-" in case, int(case[-1])
    expected = {"rankdrift": 1}
    expected |= {} if packed else {"transformers": MICRO_BATCHES}
    expected |= {} if stage == 0 else {"deepspeed": 2 if stage < 3 else 1}
    assert waits[case] == expected


@pytest.mark.gpu
@pytest.mark.distributed
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")
def test_a_step_on_a_gpu_waits_once(tmp_path: Path) -> None:
    found = counted(tmp_path, "cuda", "bf16")
    print(json.dumps(found, indent=2))
    assert {case: told.get("rankdrift") for case, told in found.items()} == dict.fromkeys(CASES, 1)
