"""Cleaning a study: what can be made again goes, what cannot stays."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.studies.clean import clean
from rankdrift.zero_checkpoint import rotation


@pytest.fixture
def study(zero: Any, tmp_path: Path) -> StudyLayout:
    """A run with checkpoints 2 and 4, both exported, and everything else that a study leaves."""
    study = StudyLayout(tmp_path / "study")
    run = study.run("a")
    for step in (2, 4):
        zero.save_stage_2(run.checkpoint(step), [{"w": torch.ones(8)}], 1)
        zero.record_of(step).write(run.checkpoint(step))
        write(run.export(step) / "model.safetensors")
        files.write_json(run.score(step), {})
    (run.checkpoints / "latest").write_text("step-000004\n")
    files.write_json(run.spec, {})
    for folder in (study.base / "cache", study.tables / ".parts", run.merged(4)):
        write(folder / "file")
    variant = run.variant(4, "x")
    write(variant.export(4) / "model.safetensors")
    files.write_json(variant.score(4), {})
    for kept in (study.table("t"), study.report, run.metrics):
        write(kept)
    return study


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)


def left(study: StudyLayout) -> set[str]:
    return {str(path.relative_to(study.root)) for path in study.root.rglob("*") if path.is_file()}


def test_what_can_be_made_again_goes(study: StudyLayout) -> None:
    before = left(study)
    lines: list[str] = []
    assert clean(study, keep_exports=False, checkpoints=False, say=lines.append) == 6 * 1000
    gone = before - left(study)
    assert {Path(name).parts[-3:] for name in gone if "variants" in name} == {
        ("exports", "step-000004", "model.safetensors")
    }
    assert {name for name in gone if "variants" not in name} == {
        "base/cache/file",
        "tables/.parts/file",
        "runs/a/merged/step-000004/file",
        "runs/a/exports/step-000002/model.safetensors",
        "runs/a/exports/step-000004/model.safetensors",
    }
    assert len(lines) == 6
    assert clean(study, keep_exports=False, checkpoints=False, say=lines.append) == 0


def test_an_export_without_its_checkpoint_stays(study: StudyLayout) -> None:
    run = study.run("a")
    (run.checkpoint(2) / "checkpoint.json").unlink()
    clean(study, keep_exports=False, checkpoints=False, say=lambda _: None)
    assert run.export(2).exists()
    assert not run.export(4).exists()


@pytest.mark.parametrize("keep_exports", [True, False])
def test_checkpoints_go_only_where_their_weights_are_kept(study: StudyLayout, keep_exports: bool) -> None:
    run = study.run("a")
    clean(study, keep_exports, checkpoints=True, say=lambda _: None)
    assert not run.checkpoint(2).exists()
    assert run.checkpoint(4).exists()
    assert run.export(2).exists()  # it alone has the weights of step 2
    assert run.export(4).exists() == keep_exports


def test_a_run_that_trains_is_left_alone(study: StudyLayout) -> None:
    run: RunLayout = study.run("a")
    before = left(study) | {"runs/a/.lock"}
    with open(run.lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being trained"):
            clean(study, keep_exports=False, checkpoints=False, say=lambda _: None)
    assert left(study) == before


def test_a_checkpoint_that_is_being_read_stays(study: StudyLayout) -> None:
    run, lines = study.run("a"), list[str]()
    (run.checkpoints / "latest").unlink()  # a checkpoint is one without it, too
    with rotation.held(run.checkpoint(2)):
        clean(study, keep_exports=True, checkpoints=True, say=lines.append)
    assert (run.checkpoint(2) / "checkpoint.json").exists()
    assert not any("checkpoints" in line for line in lines)


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(tmp_path)]) == 2
    assert "no runs there" in capsys.readouterr().err
