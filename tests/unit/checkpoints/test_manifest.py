"""Manifests: a folder is a checkpoint if its files are the recorded ones; and which checkpoints stay."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import xxhash

from rankdrift.errors import IntegrityError
from rankdrift.layout import step_name
from rankdrift.zero_checkpoint.checksums import StoredFile
from rankdrift.zero_checkpoint.manifest import Manifest, newest
from rankdrift.zero_checkpoint.rotation import Retention, remove, remove_leftovers

RECORD = Manifest(
    step=500,
    world_size=2,
    zero_stage=2,
    method="lora",
    precision="bf16",
    spec_digest="abc",
    base="/models/base",
    base_digest="def",
    data_position=8000,
    seed=42,
)


def make(folder: Path) -> Path:
    (folder / "extra").mkdir(parents=True)
    (folder / "a.pt").write_bytes(b"12345")
    (folder / "extra" / "b.pt").write_bytes(b"123")
    return folder


def stored(content: bytes) -> StoredFile:
    return StoredFile(len(content), xxhash.xxh3_128_hexdigest(content))


def alter(folder: Path, **changes: Any) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    written = RECORD.write(folder)
    assert written.files == {"a.pt": stored(b"12345"), "extra/b.pt": stored(b"123")}
    assert dataclasses.replace(written, files={}, directories={}) == RECORD
    assert Manifest.read(folder) == written
    assert written.write(folder) == written  # the manifest does not list itself
    written.check_contents(folder)


def test_files_that_were_summed_while_written_are_not_read_again(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    known = {"a.pt": StoredFile(5, "as the writer says")}
    assert RECORD.write(folder, known).files["a.pt"] == known["a.pt"]
    with pytest.raises(OSError, match=r"a\.pt has 5 bytes after 6"):
        RECORD.write(folder, {"a.pt": StoredFile(6, "")})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1234", r"a\.pt: 4 bytes where 5 were written"), (None, r"a\.pt: missing")],
    ids=["cut", "missing"],
)
def test_reading_finds_a_file_of_another_size(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = make(tmp_path / "step")
    RECORD.write(folder)
    (folder / "a.pt").unlink()
    if content is not None:
        (folder / "a.pt").write_bytes(content)
    with pytest.raises(IntegrityError, match=message):
        Manifest.read(folder)


def test_checking_finds_an_altered_byte(tmp_path: Path) -> None:
    folder = make(tmp_path / "step")
    manifest = RECORD.write(folder)
    (folder / "extra" / "b.pt").write_bytes(b"124")
    assert Manifest.read(folder) == manifest
    seen: list[int] = []
    with pytest.raises(IntegrityError, match=r"b\.pt: checksum .* was written"):
        manifest.check_contents(folder, seen.append)
    assert seen == [5, 3]


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data/0", content)
    return buffer.getvalue()


@pytest.mark.parametrize("other", [zipped(b"124"), b"?" * len(zipped(b"123"))], ids=["swapped", "no zip"])
def test_reading_knows_an_archive_by_its_directory(tmp_path: Path, other: bytes) -> None:
    """Shards of other ranks or steps have the same size, and other CRCs in their directory."""
    folder = make(tmp_path / "step")
    (folder / "shard.pt").write_bytes(zipped(b"123"))
    assert list(RECORD.write(folder).directories) == ["shard.pt"]
    Manifest.read(folder)
    assert len(other) == (folder / "shard.pt").stat().st_size
    (folder / "shard.pt").write_bytes(other)
    with pytest.raises(IntegrityError, match=r"shard\.pt: not the file that was written"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "content",
    ['{"step": 1}', "[]", '{"step": ', "", b"\xff\xfe"],
    ids=["keys", "list", "cut", "empty", "binary"],
)
def test_a_foreign_record_is_refused(tmp_path: Path, content: str | bytes) -> None:
    folder = make(tmp_path / "step")
    (folder / "checkpoint.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(IntegrityError, match=r"checkpoint\.json"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 501},
        {"step": "500"},
        {"zero_stage": 3},
        {"world_size": 4},
        {"files": {}},
        {"files": {"a.pt": 5}},
        {"more": 1},
        {"record_checksum": None},
    ],
    ids=str,
)
def test_an_altered_record_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make(tmp_path / "step")
    RECORD.write(folder)
    alter(folder, **changes)
    with pytest.raises(IntegrityError, match=r"checkpoint\.json"):
        Manifest.read(folder)


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path: Path) -> None:
    RECORD.write(make(tmp_path / step_name(501)))
    with pytest.raises(IntegrityError, match="states step 500"):
        Manifest.read(tmp_path / step_name(501))


def test_newest_is_the_newest_whole_one_whatever_latest_says(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    for step in (100, 200):
        dataclasses.replace(RECORD, step=step).write(make(tmp_path / step_name(step)))
    make(tmp_path / step_name(300))  # killed while saving
    (tmp_path / "latest").write_text(step_name(300))
    assert newest(tmp_path) == 200
    (tmp_path / step_name(200) / "a.pt").unlink()
    assert newest(tmp_path) == 100


STEPS = [10, 20, 30, 40, 50]


LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.5}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Retention(), STEPS),
        (Retention(listed=(10,)), STEPS),  # no rule to remove by
        (Retention(last=1), [50]),
        (Retention(last=2), [40, 50]),
        (Retention(last=9), STEPS),
        (Retention(every=20), [20, 40, 50]),
        (Retention(best=1), [20, 50]),
        (Retention(best=2), [20, 40, 50]),
        (Retention(last=2, every=30, best=1, listed=(10, 11)), [10, 20, 30, 40, 50]),
        (Retention(last=1, listed=(10,)), [10, 50]),
    ],
)
def test_rules_add_up_and_the_newest_stays(keep: Retention, kept: list[int]) -> None:
    gone = keep.superfluous(STEPS[::-1], LOSSES)
    assert [step for step in STEPS if step not in gone] == kept
    assert set(gone) <= set(STEPS)


def test_nothing_to_remove_of_nothing() -> None:
    assert Retention(last=1).superfluous([], {}) == []


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / step_name(step)
    path.mkdir()
    (path / "shard.pt").write_bytes(b"1")
    return path


def test_a_removed_checkpoint_is_gone(tmp_path: Path) -> None:
    assert remove(checkpoint(tmp_path, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_read_stays(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    reader = os.open(path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_EX)
    assert not remove(path)
    assert (path / "shard.pt").exists()
    os.close(reader)
    assert remove(path)


def test_a_removal_cut_short_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    checkpoint(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / step_name(1))
    assert not (tmp_path / step_name(1)).exists()
    (tmp_path / f".{step_name(2)}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
