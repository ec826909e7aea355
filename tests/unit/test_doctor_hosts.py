"""What the doctor says of several machines: of planted differences, and through a stand-in for ssh."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from rankdrift.cli.main import main
from rankdrift.doctor import clock, hosts
from rankdrift.doctor.clock import Offset, clock_offset
from rankdrift.doctor.host_facts import Facts, facts
from rankdrift.doctor.hosts import Asked, Examined
from rankdrift.hosts.hostfile import Host
from rankdrift.hosts.ssh import Answer, Ssh

FIRST = Facts(
    name="vm1",
    code="a" * 32,
    versions={"python": "3.11.7", "torch": "2.9", "deepspeed": "0.19"},
    gpus=["H200"] * 8,
    cuda="12.8",
    fabrics=["mlx5_0"],
    peers=True,
    interface="eth0",
    address="10.0.0.1",
    megabits=100_000,
    free=2**40,
    port_free=True,
)
CLOCK = Offset(0.01, 0.02)


def problems(number: int, found: Facts | None, offset: Offset | None = CLOCK, error: str = "") -> list[str]:
    """What is wrong with one of two hosts that asks for eight ranks each."""
    asked = Asked([Host("vm1", 8), Host("vm2", 8)], Ssh(), Path("/x"), Path("outputs"), "vm1", 29500, {})
    answer = Answer(asked.hosts[number].name, int(found is None), "", error)
    return list(hosts._problems(asked, number, answer, found, offset, FIRST))


def test_a_host_like_the_first_has_no_problem() -> None:
    assert problems(0, FIRST) == []
    assert problems(1, replace(FIRST, name="vm2", address="10.0.0.2", port_free=False)) == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"code": "b" * 32}, "vm2: other code than on vm1"),
        ({"versions": FIRST.versions | {"torch": "2.8"}}, "vm2: torch 2.8 where vm1 has 2.9"),
        ({"gpus": ["H200"] * 4}, "vm2: slots=8, but 4 GPUs"),
        ({"gpus": ["A100"] * 8}, "vm2: A100, not H200 as vm1"),
        ({"interface": None}, "vm2: no interface leads to vm1"),
        ({"free": 2**30}, "vm2: 1.0 GiB free for outputs"),
    ],
)
def test_one_planted_difference_is_the_one_problem(change: dict[str, object], part: str) -> None:
    (found,) = problems(1, replace(FIRST, **change))
    assert found.startswith(part)


def test_a_taken_port_counts_on_the_first_host() -> None:
    (found,) = problems(0, replace(FIRST, port_free=False))
    assert found == "vm1: port 29500 is taken; give --master-port another one"


def test_clocks_count_as_apart_only_by_what_is_sure() -> None:
    assert problems(1, FIRST, Offset(-5.0, 4.0)) == []
    (found,) = problems(1, FIRST, Offset(-5.0, 1.0))
    assert found.startswith("vm2: its clock is -5.0 s off this machine's; start chrony")
    (found,) = problems(1, FIRST, None)
    assert found == "vm2: does not tell its time (date)"


def test_a_host_that_does_not_answer_is_its_one_problem() -> None:
    (found,) = problems(1, None, error="ssh: connect to host vm2 port 22: Connection refused")
    assert found.startswith("vm2: nothing listens for ssh")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ssh that runs the command on this machine."""
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift 2; done\nexec sh -c "$2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    return fake


def test_this_machines_clock_is_not_off(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = clock_offset(Ssh(), "vm1")
    assert offset
    assert abs(offset.seconds) <= offset.within < 5
    monkeypatch.setattr(clock, "REMOTE", "while read x; do date +%s.%N -d '+30 seconds'; done")
    shifted = clock_offset(Ssh(), "vm1")
    assert shifted
    assert shifted.at_least > 25
    monkeypatch.setattr(clock, "REMOTE", "exit 1")
    assert clock_offset(Ssh(), "vm1") is None


def test_facts_are_this_machines(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        found = facts(tmp_path / "not" / "there", "127.0.0.1", taken.getsockname()[1])
    assert not found.port_free
    assert found.name == socket.gethostname()
    assert found.free > 0
    assert set(found.versions) >= {"python", "torch", "deepspeed"}
    assert Facts.read(json.dumps(found.__dict__)) == found


@pytest.mark.distributed
def test_two_names_of_this_machine_are_asked_and_add_up(
    shell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    status = main(["doctor", "--hosts", str(tmp_path / "hosts"), "--master-port", port, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [one["facts"]["code"] for one in told["hosts"]] == [told["hosts"][0]["facts"]["code"]] * 2
    assert told["all_reduce"] > 1e6, told["problems"]
    assert status == bool(told["problems"])


def test_hosts_are_shown_in_the_order_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("vm1 slots=8\nvm2 slots=8\n")
    monkeypatch.setattr(Ssh, "address", lambda self, host: host)

    def found(asked: Asked) -> list[Examined]:
        wrong = ("vm2: does not answer",)
        return [Examined(asked.hosts[0], FIRST, CLOCK, ()), Examined(asked.hosts[1], None, None, wrong)]

    monkeypatch.setattr(hosts, "examine", found)
    assert main(["doctor", "--hosts", str(tmp_path / "hosts")]) == 1
    said = capsys.readouterr().out
    assert said.index("vm1") < said.index("vm2")
    assert "8 x H200" in said
    assert "eth0 10.0.0.1, 100 Gbit/s" in said
    assert "all-reduce: not tried, a host is missing" in said
    assert said.endswith("bad: vm2: does not answer\n")
