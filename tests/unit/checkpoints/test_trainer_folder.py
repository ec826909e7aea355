"""Checkpoints as the Hugging Face Trainer and accelerate lay them out: shards below, settings beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankdrift.analysis.sources.folders import config_folder, model_tensors, recorded_base
from rankdrift.cli.main import main
from rankdrift.zero_checkpoint.trainer_folder import TrainerFolder, trainer_folder


@pytest.fixture
def checkpoint(zero: Any, tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A Trainer's checkpoint-6 at ZeRO-2 on two ranks, with the rounded model that it writes beside."""
    folder = tmp_path / "checkpoint-6"
    zero.save_stage_2(folder / "global_step6", [tensors], 2)
    (folder / "latest").write_text("global_step6\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    (folder / "tokenizer.json").write_text("{}")
    torch.save({"learning_rate": 1e-5}, folder / "training_args.bin")
    save_file({name: value.bfloat16() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def test_it_is_known_from_either_folder(checkpoint: Path) -> None:
    for given in (checkpoint, checkpoint / "global_step6"):
        found = trainer_folder(given)
        assert found == TrainerFolder(checkpoint, checkpoint / "global_step6")
        assert found.step == 6


@pytest.mark.parametrize(
    ("folder", "shards", "step"),
    [("checkpoint-7", "pytorch_model", 7), ("state", "global_step8", 8), ("state", "pytorch_model", 0)],
)
def test_the_step_is_that_of_the_name_that_has_one(folder: str, shards: str, step: int) -> None:
    assert TrainerFolder(Path(folder), Path(folder) / shards).step == step


def test_a_run_s_own_checkpoints_are_none(make_run: Any) -> None:
    run = make_run(1)
    (run.checkpoints / "latest").write_text("step-000001\n")
    assert trainer_folder(run.checkpoints) is None
    assert trainer_folder(run.checkpoint(1)) is None


def test_it_is_consolidated_from_its_masters(
    checkpoint: Path, tensors: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["consolidate", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert f"{checkpoint / 'global_step6'}: fp32 masters" in said
    export = checkpoint / "consolidated"
    found = load_file(export / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert json.loads((export / "config.json").read_text())["dtype"] == "float32"
    assert {path.name for path in export.iterdir()} == {
        *("config.json", "model.safetensors", "provenance.json", "tokenizer.json")
    }
    assert main(["consolidate", str(checkpoint)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_its_masters_are_analysed_and_not_the_rounded_model_beside_them(
    checkpoint: Path, tensors: dict[str, torch.Tensor]
) -> None:
    read = model_tensors(checkpoint)
    for name, value in tensors.items():
        assert torch.equal(read.tensor(name), value)
        assert not torch.equal(value, value.bfloat16().float()), "else nothing tells them apart"
    assert config_folder(checkpoint) == checkpoint
    assert recorded_base(checkpoint) is None


def test_settings_may_lie_apart(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (checkpoint / "config.json").rename(tmp_path / "model" / "config.json")
    assert main(["consolidate", str(checkpoint)]) == 2
    assert "name the folder of the model it was trained from with --model" in capsys.readouterr().err
    command = ["consolidate", str(checkpoint), "--model", str(tmp_path / "model"), "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_its_options_are_refused_for_runs(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", str(make_run(1).root), "--output", "x"]) == 2
    assert "--output and --model are for checkpoints of the Trainer" in capsys.readouterr().err
