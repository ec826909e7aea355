"""The command of DeepSpeed's launcher for one training on several machines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.hosts.hostfile import Host
from rankdrift.hosts.ssh import Ssh


@dataclass(frozen=True)
class Start:
    """How ranks are started."""

    hostfile: Path
    port: int
    """Of rank 0."""
    address: str | None = None
    """Of rank 0's machine; by default what ssh means by the first host."""
    node_rank: int | None = None
    """Which line of the hostfile this machine is, where each is started by itself, without ssh."""
    ssh: Ssh = field(default_factory=Ssh)
    some: bool = False
    """Whether the hosts, or their slots, are some of the hostfile's alone."""


def command(start: Start, hosts: Sequence[Host], arguments: Sequence[str]) -> list[str]:
    """Return the command that starts all ranks, or without ssh this machine's; raise UserError."""
    options = ["--hostfile", str(start.hostfile), "--master_port", str(start.port), "--log_level", "warning"]
    if start.node_rank is None:
        if not shutil.which("pdsh"):
            raise UserError(
                "pdsh: no such command, and DeepSpeed starts hosts by it (Debian: apt-get install pdsh)"
            )
        address = start.address or start.ssh.address(hosts[0].name)
        options += ["--no_ssh_check", "--force_multi", "--master_addr", address]
        options += ["--ssh_port", str(start.ssh.port)] if start.ssh.port else []
        options += ["--include", "@".join(_slots(host) for host in hosts)] if start.some else []
    else:
        if not 0 <= start.node_rank < len(hosts):
            raise UserError(
                f"--node-rank {start.node_rank}: {start.hostfile} has {len(hosts)} hosts, "
                f"which are numbers 0 to {len(hosts) - 1}"
            )
        options += ["--no_ssh", "--node_rank", str(start.node_rank)]
        options += ["--master_addr", start.address or hosts[0].name]
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", *options]
    return [*runner, "--module", "rankdrift.cli.train", *arguments]


def _slots(host: Host) -> str:
    return f"{host.name}:{','.join(map(str, host.used))}"
