"""Other machines through ssh: whether they can be reached, and commands on all of them at once."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rankdrift.errors import UserError

CONNECT = 8
"""Seconds a machine has to answer."""
TOGETHER = 32
"""Machines asked at once."""

REFUSALS = (
    ("could not resolve", "its name does not resolve; correct it, or add it to /etc/hosts on every host"),
    ("permission denied", "ssh is refused, no key of this user is accepted; ssh-copy-id {host}"),
    ("host key verification failed", "its host key is not known; ssh {host} once by hand"),
    ("connection refused", "nothing listens for ssh; start sshd there, or give --ssh-port"),
    ("timed out", "it does not answer; is it up, does a firewall stop ssh?"),
    ("no route to host", "there is no way to it; is it up, is the address right?"),
    ("network is unreachable", "there is no way to it; is the address right?"),
)
"""What ssh says of a failure, and what we say."""


@dataclass(frozen=True)
class Answer:
    """What a command on a machine has said."""

    host: str
    status: int
    output: str
    error: str

    @property
    def problem(self) -> str | None:
        """What is wrong, and what to do; None where the command has ended well."""
        if not self.status:
            return None
        said = self.error.strip()
        for sign, meaning in REFUSALS:
            if sign in said.lower():
                return f"{self.host}: {meaning.format(host=self.host)}"
        last = said.splitlines()[-1] if said else f"exit code {self.status}"
        return f"{self.host}: {last}"


@dataclass(frozen=True)
class Ssh:
    """How to reach machines; further options are those of the user's ssh configuration."""

    port: int | None = None

    @property
    def command(self) -> list[str]:
        """The command, which never asks for anything."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT}"]
        return ["ssh", *options, *(["-p", str(self.port)] if self.port else [])]

    def run(self, host: str, command: str, timeout: float = 60.0) -> Answer:
        """Run a shell's command on a machine."""
        try:
            done = subprocess.run(
                [*self.command, host, command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except FileNotFoundError:
            raise UserError(
                "ssh: no such command; install it (Debian: apt-get install openssh-client)"
            ) from None
        except subprocess.TimeoutExpired:
            return Answer(host, 255, "", f"no end within {timeout:.0f} s")
        return Answer(host, done.returncode, done.stdout, done.stderr)

    def run_on_all(self, hosts: Sequence[str], command: str, timeout: float = 60.0) -> list[Answer]:
        """Run a command on all machines at once; return their answers in the machines' order."""
        with ThreadPoolExecutor(min(TOGETHER, len(hosts))) as pool:
            return list(pool.map(lambda host: self.run(host, command, timeout), hosts))

    def address(self, host: str) -> str:
        """Return the name or address that ssh means by a host, which may be an alias of its configuration."""
        done = subprocess.run([*self.command, "-G", host], capture_output=True, text=True, timeout=CONNECT)
        named = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("hostname ")]
        return named[0] if named else host


def require_reachable(hosts: Sequence[str], ssh: Ssh, python: str, folder: Path) -> None:
    """Raise UserError, a line each, where machines do not answer, or lack the interpreter or the folder.

    Also where two names mean one machine.
    """
    there = (
        f"test -d {shlex.quote(str(folder))} || {{ echo no folder {shlex.quote(str(folder))} >&2; exit 1; }}"
    )
    runs = f"test -x {shlex.quote(python)} || {{ echo no {shlex.quote(python)} >&2; exit 1; }}"
    answers = ssh.run_on_all(hosts, f"{there}; {runs}")
    if problems := [answer.problem for answer in answers if answer.problem]:
        raise UserError(f"{len(problems)} of {len(hosts)} hosts cannot be used:\n  " + "\n  ".join(problems))
    seen: dict[str, str] = {}
    for host in hosts:
        address = _resolved(ssh.address(host))
        if address in seen:
            raise UserError(
                f"{seen[address]} and {host} are one host, {address}; one line a host, with all slots"
            )
        seen |= {address: host} if address else {}


def _resolved(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:  # behind a host that ssh passes through
        return None
