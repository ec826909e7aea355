"""Whatever fails while an export is made: nothing half is left, and the earlier one is as it was."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.export import atomic_folder
from rankdrift.export.consolidate import PROVENANCE_NAME, consolidate
from rankdrift.export.contents import Options
from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.checksums import ChecksummingWriter
from rankdrift.zero_checkpoint.direct_io import DirectFile

MakeRun = Callable[..., RunLayout]
# What an export asks of the operating system that can fail for want of space, rights or a working disk.
OPERATIONS = {
    "write": (ChecksummingWriter, "write"),
    "write to the disk": (DirectFile, "_write_some"),
    "text": (Path, "write_text"),
    "copy": (shutil, "copyfile"),
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "replace": (os, "replace"),
    "mkdir": (os, "mkdir"),
}


class Faults:
    """Makes the n-th call of an operation fail (0: none), and counts the calls."""

    def __init__(self, operation: str, fatal: int, patch: pytest.MonkeyPatch) -> None:
        place, name = OPERATIONS[operation]
        original: Any = getattr(place, name)
        self.calls = 0

        def perhaps(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == fatal:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        patch.setattr(place, name, perhaps)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("earlier", [False, True], ids=["first export", "over an earlier export"])
def test_every_failing_operation(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, operation: str, earlier: bool
) -> None:
    run, wanted = make_run(1), Options("bf16", shard_size=60)  # several files and an index
    with monkeypatch.context() as patch:
        if earlier:
            consolidate(run, 1)
        calls = Faults(operation, 0, patch)
        consolidate(run, 1, wanted)
    weights = {name: data for name, data in contents(run.export(1)).items() if name != PROVENANCE_NAME}
    assert calls.calls
    refused = 0
    for fatal in range(1, calls.calls + 1):
        shutil.rmtree(run.exports, ignore_errors=True)
        before = contents(consolidate(run, 1)) if earlier else {}
        with monkeypatch.context() as patch:
            Faults(operation, fatal, patch)
            message = refusal(run, wanted)
        found = contents(run.export(1))
        if message is None:  # it did without: a folder that was to be made was there
            assert operation == "mkdir"
            assert found.items() >= weights.items()
            continue
        refused += 1
        assert f"{run.exports}: the export cannot be made" in message
        assert "No space left" in message
        assert found == before
        assert [entry.name for entry in run.root.glob("exports/*")] == ["step-000001"] * earlier
    assert refused


def refusal(run: RunLayout, options: Options) -> str | None:
    """Return what is said where an export cannot be made."""
    try:
        consolidate(run, 1, options)
    except UserError as error:
        return str(error)
    return None


def test_an_export_that_stepped_aside_for_a_killed_process_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "step-000001"
    old = tmp_path / ".step-000001.old"
    old.mkdir()
    (old / "weights").write_text("w")
    atomic_folder.restore(target)
    assert (target / "weights").read_text() == "w"
    assert not old.exists()
    old.mkdir()
    atomic_folder.restore(target)
    assert (target / "weights").read_text() == "w"


def test_a_lock_dies_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened"), atomic_folder.locked(tmp_path / "gone"):
        pytest.fail("it holds what is not there")
    with (
        atomic_folder.locked(tmp_path),
        pytest.raises(UserError, match="another process"),
        atomic_folder.locked(tmp_path),
    ):
        pytest.fail("two hold it")
    with atomic_folder.locked(tmp_path):
        pass
