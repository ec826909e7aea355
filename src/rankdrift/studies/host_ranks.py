"""The ranks of a run on several machines, started by DeepSpeed's launcher, and those that are left."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from rankdrift.errors import LostRankError
from rankdrift.hosts.deepspeed_launcher import Start, command
from rankdrift.hosts.forwarded import as_a_rank
from rankdrift.hosts.hostfile import Host
from rankdrift.layout import RunLayout
from rankdrift.studies.launcher import raise_for
from rankdrift.studies.stand import Stand

PATIENCE, AGAIN = 300.0, 5.0
"""Seconds that machines which do not answer are waited for (one may boot), and between two questions."""
KILLED = (137, 247)
"""Exit codes of a rank that SIGKILL has ended, as a shell and as DeepSpeed's launcher say it."""
NOTICED = "-o ServerAliveInterval=5 -o ServerAliveCountMax=4"
"""What ssh is told: a machine that is gone without a word is noticed, else pdsh waits for it for ever."""


@dataclass(frozen=True)
class HostRanks:
    """Ranks on several machines."""

    how: Start
    hosts: Sequence[Host]
    arguments: Sequence[str]
    """Of ``rankdrift train``."""
    run: RunLayout
    """Its folder, as each machine calls it."""
    variables: Mapping[str, str]
    """What ranks are given."""
    environment: Mapping[str, str]
    """Of DeepSpeed's launcher."""

    def __str__(self) -> str:
        return f"{sum(len(host.used) for host in self.hosts)} ranks ({', '.join(self._names)})"

    @property
    def _names(self) -> list[str]:
        return [host.name for host in self.hosts]

    def start(self) -> None:
        """Start them once all machines answer; raise as ``launcher.launch`` and where one does not."""
        self._require_answers()
        told = f"{self.environment.get('PDSH_SSH_ARGS_APPEND', '')} {NOTICED}".strip()
        environment = {**self.environment, "PDSH_SSH_ARGS_APPEND": told}
        status = subprocess.run(command(self.how, self.hosts, self.arguments), env=environment).returncode
        raise_for(-9 if status in KILLED else status)

    def stand(self) -> Stand:
        """Ask the first machine that answers: rank 0's, unless it is gone."""
        ask = [sys.executable, "-m", "rankdrift.studies.stand", str(self.run.root)]
        line = as_a_rank(Path.cwd(), self.variables, ask)
        for answer in self.how.ssh.run_on_all(self._names, line):
            if not answer.status:
                return Stand(**json.loads(answer.output))
        raise LostRankError(f"no host answers of {', '.join(self._names)}")

    def without_what_failed(self, stand: Stand) -> HostRanks:
        """Return the machines that answer; if all do, without the slot of the rank that failed."""
        gone = self._silent()
        if gone:
            left = [host for host in self.hosts if host.name not in gone]
        else:
            left = without_rank(self.hosts, stand.failed)
        if not left:
            raise LostRankError("no host is left")
        return dataclasses.replace(self, hosts=left, how=dataclasses.replace(self.how, some=True))

    def _silent(self) -> dict[str, str]:
        """Return what is wrong with machines that do not answer."""
        answers = self.how.ssh.run_on_all(self._names, "true")
        return {answer.host: answer.problem for answer in answers if answer.problem}

    def _require_answers(self) -> None:
        if self.how.node_rank is not None:  # without ssh there is nobody to ask
            return
        deadline = monotonic() + PATIENCE
        while silent := self._silent():
            if monotonic() > deadline:
                raise LostRankError("; ".join(silent.values()))
            sleep(AGAIN)


def without_rank(hosts: Sequence[Host], rank: int | None) -> list[Host]:
    """Return machines without the slot of a rank, which are numbered in their order."""
    places = [(host.name, slot) for host in hosts for slot in host.used]
    if rank is None or not 0 <= rank < len(places):
        return list(hosts)
    name, taken = places[rank]
    left = [
        dataclasses.replace(host, without=(*host.without, taken)) if host.name == name else host
        for host in hosts
    ]
    return [host for host in left if host.used]
