"""Machines to test with: each has a network, folders, processes, a host name and an sshd of its own.

Made of Linux's namespaces. The interfaces of all are joined by a bridge in a namespace of its own. All of it
goes with the processes that hold it, which the kernel kills if the test's process dies.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
NEEDED = ("ip", "unshare", "nsenter", "mount", "sshd", "ssh", "ssh-keygen", "pdsh", "rsync")
SPACES = ("--net", "--mount", "--uts", "--pid")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
SSHD = """
Port 22
HostKey {key}
PermitRootLogin yes
StrictModes no
PidFile none
UsePAM no
LogLevel ERROR
AuthorizedKeysFile {users}
"""
SSH = """
IdentityFile {key}
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def why_not() -> str | None:
    """Say why there can be no machines here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in NEEDED if not shutil.which(name, path=SBIN)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", *SPACES, "--fork", "mount", "-t", "tmpfs", "x", "/tmp"], capture_output=True
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Space:
    """Namespaces that are held by a process, number 1 in them."""

    def __init__(self, script: str) -> None:
        command = [
            "unshare",
            *SPACES,
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-ec",
            script + "\necho up; exec sleep infinity",
        ]
        self.holder = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_parent
        )
        assert self.holder.stdout
        assert self.holder.stdout.readline() == "up\n", "the machine has not come up"
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.init = int(children[0])

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-u", "-p", *command]

    def do(self, script: str) -> None:
        subprocess.run(self.inside("sh", "-ec", script), check=True)

    def end(self) -> None:
        self.holder.kill()
        self.holder.wait()


class Machine(Space):
    """One of several machines, known to the others by its name.

    Its ``outputs`` and ``cache`` below the common folder are its own; ``disk`` is the size of the former's.
    """

    def __init__(
        self, name: str, home: Path, common: Path, binds: Mapping[Path, Path], disk: str | None = None
    ) -> None:
        self.name, self.common = name, common
        own = {common / "etc" / "hosts": Path("/etc/hosts")}
        own |= {common / "etc" / "ssh_config": Path("/etc/ssh/ssh_config"), **binds}
        for part in ("outputs", "cache"):
            (home / part).mkdir(parents=True, exist_ok=True)
            own[home / part] = common / part
        lines = [f"hostname {name}", "mount --make-rprivate /", "mount -t tmpfs tmpfs /dev/shm"]
        lines += [f"mount --bind {shlex.quote(str(a))} {shlex.quote(str(b))}" for a, b in own.items()]
        lines += [f"mount -t tmpfs -o size={disk} tmpfs {common}/outputs"] if disk else []
        lines += ["mount -t tmpfs tmpfs /run", "mkdir /run/sshd", "ip link set lo up"]
        super().__init__("\n".join(lines))

    @property
    def outputs(self) -> Path:
        """The common folder of outputs as this machine sees it, from outside."""
        return Path(f"/proc/{self.init}/root{self.common}/outputs")

    def popen(self, *command: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
        """Start a command of a user who is logged in here."""
        variables = {
            "HOME": "/root",
            "PATH": f"{BIN}:{SBIN}",
            "PYTHONPATH": str(ROOT / "src"),
            "RANKDRIFT_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "DEEPSPEED_TIMEOUT": "2",
            **environment,
        }
        given = ["env", "-i", "-C", str(folder), *(f"{name}={value}" for name, value in variables.items())]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.inside(*given, *command), preexec_fn=_die_with_parent, **pipes)

    def run(self, *command: str, folder: Path, timeout: float = 170, **environment: str) -> tuple[int, str]:
        """Run a command here; return its exit code and what it has said."""
        process = self.popen(*command, folder=folder, **environment)
        try:
            said = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, said

    def ranks(self) -> list[str]:
        """The commands of trainings that run here."""
        done = subprocess.run(self.inside("ps", "-eo", "args"), capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "rankdrift.cli.train" in line]


class Machines:
    """Machines ``vm1``, ``vm2``, ... on one network, whose root users know each other's keys.

    ``folder`` has the same name on all; ``outputs`` and ``cache`` below it are each machine's own.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        binds: Mapping[int, Mapping[Path, Path]] | None = None,
        disks: Mapping[int, str] | None = None,
    ) -> None:
        self.folder = folder
        self.machines: list[Machine] = []
        for part in ("outputs", "cache", "etc"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        names = [f"vm{number}" for number in range(1, count + 1)]
        addresses = [f"10.99.0.{number}" for number in range(1, count + 1)]
        known = [f"{address} {name}\n" for address, name in zip(addresses, names, strict=True)]
        (folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n" + "".join(known))
        self._make_keys()
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in names))
        self.switch = Space("ip link add br0 type bridge; ip link set br0 up")
        for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
            more, disk = (binds or {}).get(number, {}), (disks or {}).get(number)
            machine = Machine(name, folder / name, folder, more, disk)
            self.machines.append(machine)
            port = f"port{number}"
            self._plug(machine, port)
            machine.do(f"ip addr add {address}/24 dev eth0; ip link set eth0 up")
            machine.do(f"/usr/sbin/sshd -f {folder}/etc/sshd_config")

    def _plug(self, machine: Machine, port: str) -> None:
        """Connect a machine to the switch."""
        spaces = {"a": self.switch.init, "b": machine.init}
        name = f"rd{os.getpid()}"
        commands = [
            f"ip link add {name}a type veth peer name {name}b",
            *(f"ip link set {name}{end} netns {pid}" for end, pid in spaces.items()),
        ]
        for command in commands:
            subprocess.run(command.split(), check=True)
        self.switch.do(f"ip link set {name}a name {port}; ip link set {port} master br0 up")
        machine.do(f"ip link set {name}b name eth0")

    def _make_keys(self) -> None:
        etc = self.folder / "etc"
        for path in (etc / "key", etc / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        shutil.copy(etc / "key.pub", etc / "authorized_keys")
        (etc / "ssh_config").write_text(SSH.format(key=etc / "key"))
        (etc / "sshd_config").write_text(SSHD.format(key=etc / "host_key", users=etc / "authorized_keys"))

    def __getitem__(self, number: int) -> Machine:
        return self.machines[number]

    def cut(self, number: int) -> None:
        """Take a machine's link down: no packet, no reset."""
        self.switch.do(f"ip link set port{number} down")

    def mend(self, number: int) -> None:
        """Put it up again."""
        self.switch.do(f"ip link set port{number} up")

    def end(self) -> None:
        """End everything."""
        for space in (*self.machines, self.switch):
            space.end()


def machines(folder: Path, count: int = 2, **more: Any) -> Iterator[Machines]:
    """Yield machines that end with the test (a fixture's body)."""
    if reason := why_not():
        pytest.skip(reason)
    made = Machines(folder, count, **more)
    try:
        yield made
    finally:
        made.end()
