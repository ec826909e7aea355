"""Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankdrift import files
from rankdrift.errors import UserError, did_you_mean


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half \ud800")
    assert files.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_json_lines_file_cut_short_by_a_kill_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert files.read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        files.read_jsonl(path)


def test_a_table_has_parquet_csv_and_metadata(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1, 2], "b": [0.5, None]})
    files.write_table(tmp_path / "t.parquet", table, {"columns": {"a": "count"}})
    pd.testing.assert_frame_equal(files.read_table(tmp_path / "t.parquet"), table)
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,0.5\n2,\n"
    assert files.read_json(tmp_path / "t.meta.json")["rows"] == 2


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "t.parquet"
    with pytest.raises(UserError, match=r"t\.parquet: no such table"):
        files.read_table(bad)
    bad.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"t\.parquet: not a readable Parquet table"):
        files.read_table(bad)
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json: not valid JSON"):
        files.read_json(tmp_path / "bad.json")


def test_a_fingerprint_changes_with_contents_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = files.fingerprint(tmp_path)
    assert files.fingerprint(tmp_path) == before
    (tmp_path / "a").write_text("12")
    changed = files.fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({before, changed, files.fingerprint(tmp_path)}) == 3


def test_a_digest_knows_neither_place_nor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_text("abc")
    before = files.content_digest(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "b" / "f", (1, 1))
    assert files.content_digest(tmp_path / "copy") == before
    (tmp_path / "copy" / "provenance.json").write_text("of another day")
    assert files.content_digest(tmp_path / "copy") == before
    (tmp_path / "copy" / "b" / "f").write_text("abd")  # as long
    other = files.content_digest(tmp_path / "copy")
    (tmp_path / "a" / "b" / "f").rename(tmp_path / "a" / "b" / "g")
    assert len({before, other, files.content_digest(tmp_path / "a")}) == 3


def test_what_was_read_once_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "f").write_text("abc")
    before = files.content_digest(tmp_path / "f")
    monkeypatch.setattr(files, "_xxh3", lambda path: pytest.fail("read again"))
    assert files.content_digest(tmp_path / "f") == before


def parts(folder: Path, *frames: pd.DataFrame) -> list[Path]:
    paths = [folder / f"part-{number}.parquet" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        files.write_parquet(path, frame)
    return paths


def test_a_joined_table_is_what_its_parts_are_together(tmp_path: Path) -> None:
    frames = [
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [True, False], "d": [0.1, 1e-7]}),
        pd.DataFrame({"a": [3.5, np.nan], "b": ["z", ""], "c": [True, True], "d": [2.0, np.nan]}),
        pd.DataFrame({"a": [], "b": [], "c": [], "d": []}),
    ]
    whole = pd.concat(frames[:2], ignore_index=True)
    assert files.join_tables(tmp_path / "t.parquet", parts(tmp_path, *frames), {"analysis": "x"})
    pd.testing.assert_frame_equal(files.read_table(tmp_path / "t.parquet"), whole)
    files.write_table(tmp_path / "whole.parquet", whole, {"analysis": "x"})
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert files.read_json(tmp_path / "t.meta.json")["rows"] == 4


def test_a_table_longer_than_a_spreadsheet_has_no_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CSV_ROWS", 3)
    one, other = pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [3, 4]})
    paths = parts(tmp_path, one, other)
    files.join_tables(tmp_path / "t.parquet", paths[:1], {})
    assert (tmp_path / "t.csv").exists()
    files.join_tables(tmp_path / "t.parquet", paths, {})
    assert not (tmp_path / "t.csv").exists()  # it would be of the shorter table
    assert files.read_table(tmp_path / "t.parquet")["a"].tolist() == [1, 2, 3, 4]


def test_parts_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    paths = parts(tmp_path, pd.DataFrame({"a": [1]}), pd.DataFrame({"a": []}))
    assert not files.join_tables(tmp_path / "t.parquet", paths[1:], {})
    assert not list(tmp_path.glob("t.*"))
    paths[1].write_bytes(b"no table")
    with pytest.raises(UserError, match=r"part-1\.parquet: not a readable Parquet table"):
        files.join_tables(tmp_path / "t.parquet", paths, {})


@pytest.mark.parametrize("size", [1, 30, 100, 10_000])
@pytest.mark.parametrize("end", ["", '{"step": 9', "\n"])
def test_the_last_lines_are_those_of_the_file(tmp_path: Path, size: int, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    assert files.last_jsonl(path) == []
    path.write_text("".join(files.json_line({"step": step, "name": "é"}) for step in range(9)) + end)
    found, every = files.last_jsonl(path, size), [{"step": step, "name": "é"} for step in range(9)]
    assert found == every[len(every) - len(found) :]
    assert len(found) == {1: 0, 10_000: 9}.get(size, len(found))


def test_digests_are_sha256(tmp_path: Path) -> None:
    # FIPS 180-4, the one-block example
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "f").write_text("abc")
    assert files.digest_text("abc") == files.digest_file(tmp_path / "f") == expected
    assert files.digest_json({"b": 1, "a": 2}) == files.digest_json({"a": 2, "b": 1})


def test_environment_names_versions() -> None:
    facts = files.environment()
    assert facts["packages"]["torch"].startswith("2.")
    assert facts["packages"]["rankdrift"]


def test_suggestions() -> None:
    assert did_you_mean("sst", ["sst2", "rte"]) == "did you mean 'sst2'? Known: rte, sst2."
    assert did_you_mean("zzz", ["rte"]) == "Known: rte."
    assert did_you_mean("zzz", []) == "Known: none."


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Threads of a process, or processes of one number on machines that share a folder."""
    with files.replacing(tmp_path / "a") as first, files.replacing(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # which was renamed last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
