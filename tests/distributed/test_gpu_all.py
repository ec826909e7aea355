"""The script that measures on a GPU works on a CPU too, small: what fails there would cost time on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankdrift import files

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_all.py"
PARTS = ("packed", "model", "trainer_squad")


@pytest.mark.distributed
def test_training_parts_measure(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--minutes", "9", "--out", str(tmp_path)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "--only", *PARTS], env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    told = files.read_json(tmp_path / "gpu_all.json")["parts"]
    assert {name: part["ended"] for name, part in told.items()} == dict.fromkeys(PARTS, "exit 0")
    summary = files.read_json(tmp_path / "gpu_training_512.json")["summary"]
    for method in ("full", "lora"):
        assert summary[method]["tokens_per_second"] > 0
        assert 0 < summary[method]["mfu"] < 1
    compared = files.read_json(tmp_path / "gpu_trainer_comparison_squad.json")
    assert compared["ratios"]["lora"]["packed / grouped"] > 0
