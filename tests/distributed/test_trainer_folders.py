"""Checkpoints that the Hugging Face Trainer really wrote: consolidated and analysed from their masters."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.models.base import resolve

pytestmark = pytest.mark.distributed

HERE = Path(__file__).resolve().parent
OF_TWO = ("z2-full-bf16-2", "z3-lora-bf16-2")
ACCELERATE = ("accelerate-z2", "accelerate-z3", "accelerate-z2-lora")
FULL = ("z0-full-fp32", "z1-full-bf16", "z2-full-bf16", "z3-full-bf16")
LORA = ("z2-lora-bf16", "z3-lora-fp32")


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    for ranks in (1, 2):
        run_ranks(ranks, HERE / "trainer_worker.py", str(folder))
    return folder


def checkpoint(runs: Path, case: str) -> Path:
    return runs / case / ("state" if case in ACCELERATE else "checkpoint-6")


@pytest.mark.parametrize("case", [*FULL, *LORA, *OF_TWO, *ACCELERATE])
def test_an_export_holds_what_deepspeed_gathers(runs: Path, case: str) -> None:
    folder = checkpoint(runs, case)
    assert main(["consolidate", str(folder)]) == 0
    found = load_file(next((folder / "consolidated").glob("*.safetensors")))
    truth = torch.load(runs / case / "truth.pt", weights_only=True)
    assert len(found) == len(truth)
    for name, value in truth.items():
        assert torch.equal(found[name.replace(".default", "")], value)


def test_the_masters_are_analysed_and_rounded_weights_warned_of(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of 1e-5 the bf16 model beside the shards holds little but rounding."""
    checkpoints, base = [runs / "z2-full-bf16" / f"checkpoint-{step}" for step in (3, 6)], resolve("tiny")
    analyze = ["analyze", "spectra", "--base", str(base), "--workers", "1"]
    tuned = [word for folder in checkpoints for word in ("--tuned", str(folder))]
    assert main([*analyze, *tuned, "--output", str(tmp_path / "masters")]) == 0
    said = capsys.readouterr().out
    assert f"the fp32 masters in {checkpoints[1] / 'global_step6'}, as step 6" in said
    assert "warning" not in said
    rows = files.read_table(tmp_path / "masters" / "tables" / "svd_analysis_results.parquet")
    assert set(rows["step"]) == {3, 6}
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors"):
        (plain / name).write_bytes((checkpoints[1] / name).read_bytes())
    assert main([*analyze, "--tuned", str(plain), "--output", str(tmp_path / "rounded")]) == 0
    assert "updates are mostly what storing the weights rounded" in capsys.readouterr().out
    rounded = files.read_table(tmp_path / "rounded" / "tables" / "svd_analysis_results.parquet")
    assert (rounded["noise_floor_ratio"] < 2).all()
    assert np.isinf(rows["noise_floor_ratio"]).all()


@pytest.mark.parametrize("case", [*FULL, *LORA, *OF_TWO, *ACCELERATE])
def test_it_is_verified(runs: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(runs, case)
    status, said = main(["verify", str(folder)]), capsys.readouterr().out
    assert status == 0, said
    stage = case.removeprefix("accelerate-")[1]
    assert f"layout: OK, step 6, ZeRO-{stage}, ranks: {2 if case in OF_TWO + ACCELERATE else 1}" in said
    for check in ("contents", "parameters", "weights"):
        assert f"  {check}: OK" in said
    # without ZeRO the Trainer's optimizer does not say which parameter a state belongs to
    assert f"  moments: {'not checked' if case.startswith('z0') else 'OK'}" in said
    assert ("  updates: OK" in said) == ("lora" in case)


def test_a_flipped_bit_is_found(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = shutil.copytree(runs / "z2-full-bf16" / "checkpoint-6", tmp_path / "checkpoint-6")
    shard = next(copied.glob("global_step6/*optim_states.pt"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(copied)]) == 3
    assert "is not what was written; copy the file again" in capsys.readouterr().out
    assert main(["verify", str(tmp_path)]) == 3  # as a folder of several
