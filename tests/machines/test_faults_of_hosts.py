"""Hosts that are not as they should be: each is refused, by name, and soon."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_machines import newest_of, thorough, training
from vms import ROOT, Machines, machines

pytestmark = [pytest.mark.machines, pytest.mark.distributed, pytest.mark.timeout(1200)]

AHEAD = 90
"""Seconds that vm2's clock is ahead."""
SOON = 60.0
"""Seconds within which a host that cannot be used is told of."""


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Three machines: vm2's clock is wrong, vm3 has other code and does not accept our key on port 2222."""
    folder = tmp_path_factory.mktemp("trio")
    made = machines(folder, 3, binds={1: _wrong_clock(folder), 2: _other_code(folder)})
    for trio in made:
        keyless = f"-o Port=2222 -o AuthorizedKeysFile=none -f {folder}/etc/sshd_config"
        trio[2].do(f"/usr/sbin/sshd {keyless}")
        yield trio


def _wrong_clock(folder: Path) -> dict[Path, Path]:
    """A ``date`` that is ahead: the time itself is the same in all namespaces."""
    shutil.copy("/usr/bin/date", folder / "right_date")
    wrong = folder / "date"
    wrong.write_text(f'#!/bin/sh\nexec {folder}/right_date -d "+{AHEAD} seconds" "$@"\n')
    wrong.chmod(0o755)
    return {wrong: Path("/usr/bin/date")}


def _other_code(folder: Path) -> dict[Path, Path]:
    package = ROOT / "src" / "rankdrift"
    other = folder / "other"
    shutil.copytree(package, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "training" / "schedule.py").open("a") as handle:
        handle.write("# changed on one host\n")
    return {other: package}


def launched(made: Machines, hostfile: str, *options: str) -> tuple[int, str, float]:
    """Launch; return the exit code, what was said, and the seconds it took."""
    (made.folder / "hosts").write_text(hostfile)
    began = time.monotonic()
    command = ["rankdrift", "launch", "--hostfile", "hosts", *options, "--", *training(made.folder, 2, "a")]
    status, said = made[0].run(*command, folder=made.folder, timeout=280)
    return status, said, time.monotonic() - began


def test_a_name_that_does_not_resolve(trio: Machines) -> None:
    status, said, seconds = launched(trio, "vm1 slots=1\nvm9 slots=1\n")
    assert status == 2
    assert "1 of 2 hosts cannot be used:\n  vm9: its name does not resolve" in said
    assert seconds < SOON


def test_a_key_that_is_not_accepted(trio: Machines) -> None:
    status, said, seconds = launched(trio, "vm3 slots=1\n", "--ssh-port", "2222")
    assert status == 2
    assert "vm3: ssh is refused, no key of this user is accepted; ssh-copy-id vm3" in said
    assert seconds < SOON


def test_a_host_without_sshd_and_one_that_is_cut_off(trio: Machines) -> None:
    status, said, _ = launched(trio, "vm2 slots=1\n", "--ssh-port", "2223")
    assert status == 2
    assert "vm2: nothing listens for ssh" in said
    trio.cut(1)
    try:
        status, said, seconds = launched(trio, "vm1 slots=1\nvm2 slots=1\n")
    finally:
        trio.mend(1)
    assert status == 2
    assert re.search("vm2: (it does not answer|there is no way to it)", said)
    assert seconds < SOON


def test_the_doctor_finds_a_wrong_clock_and_other_code_and_adds_up(trio: Machines) -> None:
    trio.hostfile.write_text("vm1 slots=1\nvm2 slots=1\nvm3 slots=1\n")
    doctor = ["rankdrift", "doctor", "--hosts", "hosts", "--json"]
    status, said = trio[0].run(*doctor, folder=trio.folder, timeout=280)
    assert status == 1
    told = json.loads(said[said.index("{") :])
    first, second, third = told["hosts"]
    assert not [problem for problem in told["problems"] if problem.startswith("vm1")]
    assert abs(first["clock"]["seconds"]) < 1
    assert second["clock"]["seconds"] == pytest.approx(AHEAD, abs=1)
    assert any(re.match(r"vm2: its clock is \+(89|90)\.\d s off", problem) for problem in told["problems"])
    assert first["facts"]["code"] == second["facts"]["code"] != third["facts"]["code"]
    assert any(problem.startswith("vm3: other code than on vm1") for problem in told["problems"])
    assert [one["facts"]["interface"] for one in told["hosts"]] == ["eth0"] * 3
    assert [one["facts"]["address"] for one in told["hosts"]] == ["10.99.0.1", "10.99.0.2", "10.99.0.3"]
    assert told["all_reduce"] > 1e6


@thorough
def test_other_code_on_a_host_is_told_before_the_model_is_loaded(trio: Machines) -> None:
    status, said, _ = launched(trio, "vm1 slots=1\nvm3 slots=1\n")
    assert status == 2
    assert re.search(r"vm3 \(rank 1\) has other code in .* than vm1", said)
    assert not newest_of(trio[0], "a")
    assert not trio[0].ranks() + trio[2].ranks()


@thorough
@pytest.mark.parametrize("size", ["64m", "300m"])
def test_a_full_disk_on_a_host(size: str, tmp_path: Path) -> None:
    """One that is too small from the start, and one that fills up."""
    for pair in machines(tmp_path, 2, disks={1: size}):
        run = [*training(tmp_path, 2, "a", 4000), "training.keep_last=1"]
        command = ["rankdrift", "launch", "--hostfile", "hosts", "--", *run]
        process = pair[0].popen(*command, folder=tmp_path)
        if size == "300m":
            ends = time.monotonic() + 280
            while not newest_of(pair[1], "a") and process.poll() is None and time.monotonic() < ends:
                time.sleep(0.2)
            (pair[1].outputs / "filled").write_bytes(b"0" * (280 * 2**20))
        said = process.communicate(timeout=280)[0]
        assert process.returncode == 2, said[-3000:]
        if size == "64m":
            assert re.search(r"vm2: .*checkpoints take .* GiB, .* are free", said)
        else:
            assert re.search(r"cannot be saved \(vm2: .*earlier checkpoints are untouched", said, re.DOTALL)
            assert newest_of(pair[0], "a") == newest_of(pair[1], "a") > 0
        assert not pair[0].ranks() + pair[1].ranks()
