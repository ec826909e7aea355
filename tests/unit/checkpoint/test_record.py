"""checkpoint.json: a folder is a checkpoint if the record is there and its files have the recorded sizes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankdrift.checkpoint.record import CheckpointRecord, newest
from rankdrift.errors import UserError
from rankdrift.layout import step_name

RECORD = CheckpointRecord(
    step=500,
    world_size=2,
    zero_stage=2,
    method="lora",
    precision="bf16",
    spec_digest="abc",
    base="/models/base",
    base_digest="def",
    data_position=8000,
)


def make(folder: Path) -> Path:
    (folder / "extra").mkdir(parents=True)
    (folder / "a.pt").write_bytes(b"12345")
    (folder / "extra" / "b.pt").write_bytes(b"123")
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    written = RECORD.write(folder)
    assert written == dataclasses.replace(RECORD, files={"a.pt": 5, "extra/b.pt": 3})
    assert CheckpointRecord.read(folder) == written
    assert written.write(folder) == written  # the record does not list itself


def test_a_folder_without_record_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete checkpoint"):
        CheckpointRecord.read(make(tmp_path / "step"))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    RECORD.write(folder)
    (folder / "a.pt").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"a\.pt: 4 bytes where 5 were written"):
        CheckpointRecord.read(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    RECORD.write(folder)
    (folder / "extra" / "b.pt").unlink()
    with pytest.raises(UserError, match=r"b\.pt: missing"):
        CheckpointRecord.read(folder)


@pytest.mark.parametrize("content", ['{"step": 1}', "[]", '{"step": '])
def test_a_foreign_record_is_refused(tmp_path: Path, content: str) -> None:
    folder = make(tmp_path / "step")
    (folder / "checkpoint.json").write_text(content)
    with pytest.raises(UserError, match=r"checkpoint\.json"):
        CheckpointRecord.read(folder)


def test_newest_is_the_newest_whole_one_whatever_latest_says(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    for step in (100, 200):
        dataclasses.replace(RECORD, step=step).write(make(tmp_path / step_name(step)))
    make(tmp_path / step_name(300))  # killed while saving
    (tmp_path / "latest").write_text(step_name(300))
    assert newest(tmp_path) == 200
    (tmp_path / step_name(200) / "a.pt").write_bytes(b"")
    assert newest(tmp_path) == 100


def test_records_need_no_torch() -> None:
    code = "import sys, rankdrift.checkpoint.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    RECORD.write(folder)
    tree = json.loads((folder / "checkpoint.json").read_text())
    assert (tree["step"], tree["files"]["a.pt"]) == (500, 5)
