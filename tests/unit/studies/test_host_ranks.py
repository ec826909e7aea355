"""Ranks on several machines: which are left, whom the run is asked of. Machines are a stand-in for ssh."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from rankdrift import files
from rankdrift.errors import LostRankError, Preempted, UserError
from rankdrift.hosts.deepspeed_launcher import Start, command
from rankdrift.hosts.hostfile import Host
from rankdrift.layout import RunLayout
from rankdrift.studies import host_ranks
from rankdrift.studies.host_ranks import HostRanks, without_rank
from rankdrift.studies.stand import Stand

HOSTS = [Host("vm1", 2), Host("vm2", 2), Host("vm3", 1)]
SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done
grep -q "^$1$" FOLDER/gone 2>/dev/null && { echo "ssh: connect to host $1: No route to host" >&2; exit 255; }
echo "$1" >> FOLDER/asked
sh -c "$2"
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostRanks:
    (tmp_path / "ssh").write_text(SSH.replace("FOLDER", str(tmp_path)))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run = RunLayout(tmp_path / "run")
    return HostRanks(Start(tmp_path / "hosts", 29500), HOSTS, ["--config", "x.json"], run, {}, {"HERE": "1"})


def gone(ranks: HostRanks, *names: str) -> None:
    (ranks.run.root.parent / "gone").write_text("".join(f"{name}\n" for name in names))


def names(ranks: HostRanks) -> list[tuple[str, list[int]]]:
    return [(host.name, host.used) for host in ranks.hosts]


@pytest.mark.parametrize(
    ("rank", "left"),
    [
        (0, [("vm1", [1]), ("vm2", [0, 1]), ("vm3", [0])]),
        (3, [("vm1", [0, 1]), ("vm2", [0]), ("vm3", [0])]),
        (4, [("vm1", [0, 1]), ("vm2", [0, 1])]),
        (None, [("vm1", [0, 1]), ("vm2", [0, 1]), ("vm3", [0])]),
        (9, [("vm1", [0, 1]), ("vm2", [0, 1]), ("vm3", [0])]),
    ],
)
def test_a_rank_is_taken_by_its_place(rank: int | None, left: list[tuple[str, list[int]]]) -> None:
    assert [(host.name, host.used) for host in without_rank(HOSTS, rank)] == left


def test_ranks_are_numbered_anew_after_each_loss() -> None:
    once = without_rank(HOSTS, 0)
    assert [(host.name, host.used) for host in without_rank(once, 0)] == [("vm2", [0, 1]), ("vm3", [0])]


def test_machines_that_are_gone_are_left_out_else_the_rank_that_failed(ranks: HostRanks) -> None:
    stand = Stand(4, {"rank": 1})
    fewer = ranks.without_what_failed(stand)
    assert names(fewer) == [("vm1", [0]), ("vm2", [0, 1]), ("vm3", [0])]
    gone(ranks, "vm1", "vm3")
    last = fewer.without_what_failed(stand)
    assert names(last) == [("vm2", [0, 1])]
    assert str(last) == "2 ranks (vm2)"
    gone(ranks, "vm2")
    with pytest.raises(LostRankError, match="no host is left"):
        last.without_what_failed(stand)


def test_deepspeed_is_told_of_those_that_are_left(ranks: HostRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "--include" not in command(ranks.how, ranks.hosts, [])
    gone(ranks, "vm1")
    left = without_rank(ranks.without_what_failed(Stand(0, {})).hosts, 0)
    told = command(ranks.without_what_failed(Stand(0, {})).how, left, [])
    assert told[told.index("--include") + 1] == "vm2:1@vm3:0"
    assert told[told.index("--master_addr") + 1] == "vm2"


def test_the_first_machine_that_answers_says_where_the_run_stands(ranks: HostRanks) -> None:
    assert ranks.stand() == Stand(0, {})
    files.write_json(ranks.run.status, {"state": "lost", "rank": 3, "step": 7})
    gone(ranks, "vm1")
    assert ranks.stand() == Stand(0, {"state": "lost", "rank": 3, "step": 7})
    gone(ranks, "vm1", "vm2", "vm3")
    with pytest.raises(LostRankError, match="no host answers of vm1, vm2, vm3"):
        ranks.stand()


def started(monkeypatch: pytest.MonkeyPatch, status: int) -> list[dict[str, str]]:
    """Replace DeepSpeed's launcher by one that ends so; return the environments that it will be given."""
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def launcher(asked: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        if asked != ["launcher"]:
            return run(asked, **options)  # type: ignore[call-overload, no-any-return]
        seen.append(options["env"])  # type: ignore[arg-type]
        return subprocess.CompletedProcess(["launcher"], status)

    monkeypatch.setattr(host_ranks, "command", lambda *asked: ["launcher"])
    monkeypatch.setattr(subprocess, "run", launcher)
    return seen


@pytest.mark.parametrize(
    ("status", "error"),
    [(4, LostRankError), (247, LostRankError), (137, LostRankError), (2, UserError), (75, Preempted)],
)
def test_what_the_launcher_ends_with_is_what_happened(
    status: int, error: type[Exception], ranks: HostRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = started(monkeypatch, status)
    with pytest.raises(error):
        ranks.start()
    assert seen == [{"HERE": "1", "PDSH_SSH_ARGS_APPEND": host_ranks.NOTICED}]


def test_machines_are_waited_for_but_not_for_ever(ranks: HostRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = started(monkeypatch, 0)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            gone(ranks)

    monkeypatch.setattr(host_ranks, "sleep", sleep)
    gone(ranks, "vm2")
    ranks.start()
    assert len(waited) == 3
    assert len(seen) == 1
    gone(ranks, "vm2")
    monkeypatch.setattr(host_ranks, "PATIENCE", -1.0)
    with pytest.raises(LostRankError, match="vm2: there is no way to it"):
        ranks.start()
    assert len(seen) == 1
