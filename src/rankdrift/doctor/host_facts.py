"""What a machine says of itself when ``rankdrift doctor --hosts`` asks it over ssh: one line of JSON.

It runs as a rank would: in the same folder, by the same interpreter, with the same variables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from rankdrift.hosts.code import code_digest, versions
from rankdrift.hosts.interface import interface_towards

FABRICS = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Facts:
    """A machine, as it finds itself."""

    name: str
    code: str
    """Digest of the package's sources."""
    versions: dict[str, str]
    gpus: list[str]
    cuda: str | None
    """That torch was built for."""
    fabrics: list[str]
    """InfiniBand or RoCE devices."""
    peers: bool
    """Whether all GPUs of the machine read each other's memory."""
    interface: str | None
    """The one that leads to rank 0."""
    address: str | None
    megabits: int
    """A second, of the interface; 0 where it does not say."""
    free: int
    """Bytes on the disk of the output folder."""
    port_free: bool
    """Whether rank 0's port could be listened on here."""

    @classmethod
    def read(cls, line: str) -> Facts:
        """Return what a line of JSON says."""
        return cls(**json.loads(line))


def facts(output: Path, towards: str, port: int) -> Facts:
    """Look at this machine."""
    interface = interface_towards(towards)
    count = torch.cuda.device_count()
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    present = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.is_dir())
    return Facts(
        name=socket.gethostname(),
        code=code_digest(),
        versions=versions(),
        gpus=[torch.cuda.get_device_name(number) for number in range(count)],
        cuda=torch.version.cuda,
        fabrics=sorted(path.name for path in FABRICS.iterdir()) if FABRICS.is_dir() else [],
        peers=all(torch.cuda.can_device_access_peer(one, other) for one, other in pairs),
        interface=interface,
        address=_address(interface),
        megabits=psutil.net_if_stats()[interface].speed if interface else 0,
        free=shutil.disk_usage(present).free,
        port_free=_is_free(port),
    )


def _address(interface: str | None) -> str | None:
    found: list[Any] = psutil.net_if_addrs().get(interface or "", [])
    return next((one.address for one in found if one.family == socket.AF_INET), None)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("towards")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    print(json.dumps(asdict(facts(given.output, given.towards, given.port))))
    sys.exit(0)
