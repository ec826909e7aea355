"""Each check of a machine says what it finds, and what to do about a planted defect."""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import json
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankdrift.cli.main import main
from rankdrift.doctor import checks, exchange
from rankdrift.doctor.checks import Finding

Patch = pytest.MonkeyPatch


def only(found: Iterator[Finding], state: str) -> list[Finding]:
    return [finding for finding in found if finding.state == state]


def refused(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_packages_that_are_missing_or_too_old_are_bad(monkeypatch: Patch) -> None:
    assert [finding.state for finding in checks.packages()] == ["fine"]
    lines = ["no-such-package>=1", "torch>=99", "pytest>=99 ; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    missing, old = only(checks.packages(), "bad")
    assert (missing.what, missing.remedy) == (
        "no-such-package is not installed",
        "pip install 'no-such-package>=1'",
    )
    assert old.what.startswith("torch 2.")
    assert old.remedy == "pip install 'torch>=99'"


def test_gpus_that_others_use_are_pointed_at(monkeypatch: Patch) -> None:
    cuda = checks.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    (none,) = checks.gpus()
    assert none.state == "note"
    assert "training runs on CPUs" in none.what
    monkeypatch.setattr(checks, "DRIVER", Path("/dev/null"))
    (unused,) = checks.gpus()
    assert (unused.state, "install torch for the driver" in unused.remedy) == ("bad", True)
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "get_device_name", lambda number: "H200")
    monkeypatch.setattr(cuda, "mem_get_info", lambda number: ((100 if number else 139) * 2**30, 140 * 2**30))
    idle, crowded = checks.gpus()
    assert (idle.state, idle.what) == ("fine", "0: H200, 139 of 140 GiB free")
    assert (crowded.state, crowded.remedy) == ("note", "others use it")


def test_without_a_compiler_it_is_said_what_cannot_be_done(monkeypatch: Patch, tmp_path: Path) -> None:
    assert only(checks.compilers(), "bad") == []
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler, ninja = only(checks.compilers(), "note")
    assert "no model.compile" in compiler.what
    assert compiler.remedy == "Debian: apt-get install g++"
    assert "no ninja on PATH" in ninja.what


def test_too_little_shared_memory_is_bad(monkeypatch: Patch) -> None:
    assert len(list(checks.memory())) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**26, free=2**20))
    assert len(only(checks.memory(), "note")) == 1
    monkeypatch.setattr(checks.torch.cuda, "device_count", lambda: 2)
    (shm,) = only(checks.memory(), "bad")
    assert "/dev/shm: 0.0 of 0.1 GiB free" in shm.what
    assert "--shm-size" in shm.remedy


def test_a_disk_is_written_to_where_the_output_will_be(monkeypatch: Patch, tmp_path: Path) -> None:
    (found,) = checks.disk(tmp_path / "not" / "there" / "yet")
    assert found.what.startswith(f"{tmp_path}: ")
    assert list(tmp_path.iterdir()) == []
    ticks = itertools.count(step=10.0)
    monkeypatch.setattr(checks, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    (slow,) = checks.disk(tmp_path)
    assert (slow.state, "27 MB/s" in slow.what) == ("note", True)
    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refused)
    (full,) = checks.disk(tmp_path)
    assert (full.state, full.what) == ("bad", f"{tmp_path}: No space left on device")


def test_a_network_that_does_not_answer_is_noted(monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "from local folders" in list(checks.network())[-1].what
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr(socket, "gethostbyname", refused)
    name, hub = only(checks.network(), "note")
    assert "has no address" in name.what
    assert "/etc/hosts" in name.remedy
    assert "https://huggingface.co does not answer" in hub.what


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit('no route to host')", "rank 0 of 2 failed: no route to host"),
        ("import time; time.sleep(60)", "rank 0 of 2 has not ended within 1 s"),
    ],
)
def test_ranks_that_do_not_meet_are_bad(monkeypatch: Patch, program: str, said: str) -> None:
    monkeypatch.setattr(exchange, "RUN", program)
    monkeypatch.setattr(exchange, "TIMEOUT", 1.0)
    (found,) = checks.exchange(2)
    assert (found.state, found.what) == ("bad", said)


def stand_in(*found: Finding) -> Callable[..., Any]:
    return lambda output, ranks: [("disk", lambda: iter(found))]


def test_the_exit_code_says_whether_something_is_bad(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    note, bad = Finding("disk", "note", "slow [a]", "local"), Finding("disk", "bad", "full", "another")
    monkeypatch.setattr(checks, "all_checks", stand_in(note))
    assert main(["doctor"]) == 0
    assert "slow [a]" in capsys.readouterr().out
    monkeypatch.setattr(checks, "all_checks", stand_in(note, bad))
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [line["state"] for line in told] == ["note", "bad"]
    assert told[1]["remedy"] == "another"


@pytest.mark.distributed
def test_ranks_of_this_machine_add_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--output", str(tmp_path), "--json"]) == 0
    last = json.loads(capsys.readouterr().out)[-1]
    assert last["name"] == "exchange"
    assert last["what"].startswith("2 ranks over gloo: ")
