"""An artifact comes whole, as it was uploaded, or not at all; from a stand-in for the hub."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hub import ATTRIBUTES, Hub

from rankdrift.errors import IntegrityError, UserError
from rankdrift.hub import download
from rankdrift.hub.artifact import sort_of, write_account
from rankdrift.hub.upload import upload_folder
from rankdrift.verify.verify import Verdict, find, verify


@pytest.fixture
def stored(hub: Hub, export: Path) -> dict[str, bytes]:
    """The files of the export at the hub, but for what the hub adds."""
    upload_folder(export, "me/x", False, False, lambda line: None)
    hub.asked.clear()
    return {name: file for name, file in hub.repositories["model", "me/x"].items() if name != ATTRIBUTES}


def fetched(target: Path, name: str = "me/x", revision: str | None = None, force: bool = False) -> list[str]:
    said: list[str] = []
    download.download(name, target, revision, force, said.append)
    return said


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def transfers(hub: Hub) -> list[str]:
    """The names of the files whose content was sent."""
    return sorted(asked.rpartition("/")[2] for asked in hub.asked if asked.startswith("GET /me/x/resolve"))


def test_what_was_uploaded_comes_back(stored: dict[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    said = fetched(target)
    assert content(target) == stored
    assert said[0].startswith("me/x: a model, 4 files")
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_an_export_still_verifies_with_the_card_that_came_with_it(
    hub: Hub, tiny: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    shutil.copytree(tiny, export)
    facts = {"step": 1, "method": "full", "dtype": "fp32", "merged": False, "base": {"folder": "/none"}}
    write_account(export, facts)
    upload_folder(export, "me/x", False, False, lambda line: None)
    fetched(tmp_path / "target")
    assert (tmp_path / "target" / "README.md").exists()
    lines: list[str] = []
    assert verify(find(tmp_path / "target", lines.append), lines.append) is Verdict.WELL, lines


def test_what_is_here_already_is_not_fetched_again(
    hub: Hub, stored: dict[str, bytes], tmp_path: Path
) -> None:
    fetched(tmp_path / "target")
    hub.asked.clear()
    assert fetched(tmp_path / "target") == [f"{tmp_path / 'target'}: up to date"]
    assert transfers(hub) == []


def test_a_folder_that_holds_something_else_is_replaced_with_force_alone(
    stored: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"target: holds something else than me/x \(README.md is there and not"
    ):
        fetched(target)
    assert content(target) == {"mine.txt": b"mine"}
    fetched(target, force=True)
    assert content(target) == stored
    with pytest.raises(UserError, match=r"config.json: is a file; name a folder with --to"):
        fetched(target / "config.json", force=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_damaged_on_its_way_is_noticed_and_it_alone_is_fetched_again(
    hub: Hub, stored: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    """Of a size that is right: the hub's library compares sizes itself."""
    hub.damaged.add(name)
    with pytest.raises(IntegrityError, match=rf"me/x: {name} is not what the hub states"):
        fetched(tmp_path / "target")
    assert not (tmp_path / "target").exists()
    hub.damaged.clear()
    hub.asked.clear()
    fetched(tmp_path / "target")
    assert content(tmp_path / "target") == stored
    assert transfers(hub) == [name]


def test_a_file_that_is_not_what_the_account_states_is_noticed(
    hub: Hub, stored: dict[str, bytes], tmp_path: Path
) -> None:
    """Altered at the hub, whose checksums are then those of the altered file."""
    hub.repositories["model", "me/x"]["model.safetensors"] = b"weighty"
    with pytest.raises(IntegrityError, match=r"model.safetensors: not what was written, by its checksum"):
        fetched(tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_what_is_left_of_an_older_commit_does_not_come_along(
    hub: Hub, stored: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial" / "older.json").write_text("{}")
    hub.damaged.add("config.json")
    with pytest.raises(IntegrityError):
        fetched(tmp_path / "target")
    hub.damaged.clear()
    fetched(tmp_path / "target")
    assert content(tmp_path / "target") == stored


def test_progress_is_told_in_bytes(
    stored: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        download, "byte_lines", lambda say, what: lambda done, total: told.append((what, done, total))
    )
    fetched(tmp_path / "target")
    size = sum(map(len, stored.values()))
    transfer = [(done, total) for what, done, total in told if what == "me/x: fetched"]
    assert transfer
    assert transfer[-1] == (size, size)


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, stored: dict[str, bytes], tmp_path: Path) -> None:
    hub.branches["model", "me/x", "old"] = {"adapter_config.json": b"{}"}
    fetched(tmp_path / "old", revision="old")
    assert content(tmp_path / "old") == {"adapter_config.json": b"{}"}
    with pytest.raises(UserError, match="me/x: has no such revision"):
        fetched(tmp_path / "none", revision="none")


def test_a_name_of_two_kinds_needs_the_kind(hub: Hub, stored: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories["dataset", "me/x"] = {"topic/train.parquet": b"rows"}
    with pytest.raises(UserError, match=r"me/x: a model and a data set .* say models/me/x or datasets/me/x"):
        fetched(tmp_path / "target")
    fetched(tmp_path / "rows", "datasets/me/x")
    assert content(tmp_path / "rows") == {"topic/train.parquet": b"rows"}
    fetched(tmp_path / "model", "models/me/x")
    assert content(tmp_path / "model") == stored


def test_what_cannot_be_had_says_why(
    hub: Hub, stored: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    with pytest.raises(UserError, match=r"me/none: no such repository at http.*; check the name, or log in"):
        fetched(target, "me/none")
    hub.repositories["dataset", "me/notes"] = {"notes.txt": b"text"}
    with pytest.raises(
        UserError, match=r"me/notes: holds nothing of rankdrift's: none of adapter_config.json"
    ):
        fetched(target, "me/notes")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
        with pytest.raises(UserError, match=r"0.00 GB free where 0.07 GB are to come; free some space"):
            fetched(target)
    hub.private.add(("model", "me/x"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"me/x: no such repository at http.*, or a private one"):
        fetched(target)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"me/x: http://127.0.0.1:9 gives no answer .*HF_ENDPOINT"):
        fetched(target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("names", "sort"),
    [
        (["adapter_config.json", "config.json", "model.safetensors"], "adapter"),
        (["config.json", "model-00001-of-00002.safetensors"], "model"),
        (["config.json", "pytorch_model.bin"], None),
        (["norms.parquet", "norms.meta.json"], "tables"),
        (["norms.parquet"], None),
        (["norms.meta.json"], None),
        (["topic/validation.parquet", "README.md"], "data"),
        (["topic/rows.parquet"], None),
        (["a/topic/test.parquet"], None),
        ([], None),
    ],
)
def test_the_sort_is_told_by_the_files(names: list[str], sort: str | None) -> None:
    assert sort_of(names) == sort
