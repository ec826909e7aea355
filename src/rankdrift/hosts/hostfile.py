"""DeepSpeed's list of machines: a line ``NAME slots=N`` each; ``#`` begins a comment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rankdrift.errors import UserError

LINE = re.compile(r"(\S+)\s+slots=(\d+)")


@dataclass(frozen=True)
class Host:
    """A machine that ranks are started on."""

    name: str
    slots: int
    """Ranks on it: GPUs, or processes on a CPU."""
    without: tuple[int, ...] = ()
    """Which of these are not used any more."""

    @property
    def used(self) -> list[int]:
        """The slots that ranks are started on."""
        return [slot for slot in range(self.slots) if slot not in self.without]


def read_hostfile(path: Path) -> list[Host]:
    """Return the machines in their order; node 0 is the first.

    Raises UserError, naming the line, where one cannot be understood, has no slots or names a machine again.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a readable hostfile ({error}); write a line 'NAME slots=N' each"
        ) from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        if text := line.partition("#")[0].strip():
            hosts.append(_host(text, f"{path}:{number}"))
            if hosts[-1].name in (host.name for host in hosts[:-1]):
                raise UserError(
                    f"{path}:{number}: '{hosts[-1].name}' is named again; one line a host, with all slots"
                )
    if not hosts:
        raise UserError(f"{path}: names no host; write a line 'NAME slots=N' each")
    return hosts


def _host(text: str, where: str) -> Host:
    match = LINE.fullmatch(text)
    if not match:
        raise UserError(f"{where}: '{text}' is not 'NAME slots=N'")
    if not int(match[2]):
        raise UserError(
            f"{where}: '{match[1]}' has slots=0; give it its number of GPUs, or take the line out"
        )
    return Host(match[1], int(match[2]))
