"""The checks of several machines before one run goes over all of them: what each has, and what differs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rankdrift.doctor.clock import Offset, clock_offset
from rankdrift.doctor.exchange import TIMEOUT
from rankdrift.doctor.host_facts import Facts
from rankdrift.hosts.forwarded import as_a_rank
from rankdrift.hosts.hostfile import Host
from rankdrift.hosts.ssh import TOGETHER, Answer, Ssh

GIB = 2**30
APART = 2.0
"""Seconds that clocks may be apart: times of logs, and which of two files is newer, are compared by them."""
LITTLE = 5 * GIB
"""Bytes of a disk with less free than a checkpoint of a small model takes."""


@dataclass(frozen=True)
class Asked:
    """What machines are asked, and how."""

    hosts: Sequence[Host]
    ssh: Ssh
    folder: Path
    """Where ranks are started."""
    output: Path
    address: str
    """Of rank 0's machine."""
    port: int
    variables: Mapping[str, str]
    """That ranks are given."""

    def line(self, *command: str) -> str:
        """Return the shell's line that runs a module as a rank would run."""
        return as_a_rank(self.folder, self.variables, [sys.executable, "-m", *command])


@dataclass(frozen=True)
class Examined:
    """One machine."""

    host: Host
    facts: Facts | None
    clock: Offset | None
    problems: tuple[str, ...]
    """What will make a training fail, each with what to do."""


def examine(asked: Asked) -> list[Examined]:
    """Ask all machines at once; node 0, the first, is what the others are compared with."""
    names = [host.name for host in asked.hosts]
    line = asked.line("rankdrift.doctor.host_facts", str(asked.output), asked.address, str(asked.port))
    answers = asked.ssh.run_on_all(names, line)
    reached = [not answer.status for answer in answers]
    with ThreadPoolExecutor(min(TOGETHER, len(names))) as pool:
        clocks = list(
            pool.map(lambda n: clock_offset(asked.ssh, names[n]) if reached[n] else None, range(len(names)))
        )
    found = [Facts.read(a.output.splitlines()[-1]) if not a.status else None for a in answers]
    first = next((facts for facts in found if facts), None)
    return [
        Examined(host, facts, clock, tuple(_problems(asked, number, answer, facts, clock, first)))
        for number, (host, answer, facts, clock) in enumerate(
            zip(asked.hosts, answers, found, clocks, strict=True)
        )
    ]


def _problems(
    asked: Asked, number: int, answer: Answer, facts: Facts | None, clock: Offset | None, first: Facts | None
) -> Iterator[str]:
    if facts is None or first is None:
        yield str(answer.problem)
        return
    host = asked.hosts[number]
    yield from _differences(host.name, facts, first)
    if facts.gpus and len(facts.gpus) < host.slots:
        yield f"{host.name}: slots={host.slots}, but {len(facts.gpus)} GPUs; lower slots in the hostfile"
    if not facts.interface:
        yield f"{host.name}: no interface leads to {asked.address}; see ip route, or give --master-addr"
    if number == 0 and not facts.port_free:
        yield f"{host.name}: port {asked.port} is taken; give --master-port another one"
    if facts.free < LITTLE:
        free = f"{facts.free / GIB:.1f} GiB free"
        yield f"{host.name}: {free} for {asked.output}; free some, or choose another disk"
    if clock is None:
        yield f"{host.name}: does not tell its time (date)"
    elif clock.at_least > APART:
        off = f"its clock is {clock.seconds:+.1f} s off this machine's"
        yield f"{host.name}: {off}; start chrony or ntpd there"


def _differences(host: str, facts: Facts, first: Facts) -> Iterator[str]:
    """Yield in what a machine's code, versions and GPUs are not those of the first."""
    for package, version in first.versions.items():
        if (here := facts.versions.get(package)) != version:
            yield f"{host}: {package} {here} where {first.name} has {version}; install the same"
    if facts.code != first.code:
        yield f"{host}: other code than on {first.name}; bring the same checkout to both (rsync)"
    if set(facts.gpus) != set(first.gpus):
        yield f"{host}: {_named(facts.gpus)}, not {_named(first.gpus)} as {first.name}; use hosts of one kind"


def _named(gpus: Sequence[str]) -> str:
    return ", ".join(sorted(set(gpus))) or "no GPU"


def all_reduce(asked: Asked) -> tuple[float, str | None]:
    """Add up vectors over all ranks for two seconds; return the bytes a second, or what went wrong."""
    world = sum(host.slots for host in asked.hosts)
    begins = [sum(host.slots for host in asked.hosts[:number]) for number in range(len(asked.hosts))]

    def share(number: int) -> Answer:
        host = asked.hosts[number]
        shares = [str(value) for value in (begins[number], host.slots, world, asked.address, asked.port)]
        line = asked.line("rankdrift.doctor.exchange", *shares)
        return asked.ssh.run(host.name, line, timeout=2 * TIMEOUT)

    with ThreadPoolExecutor(len(asked.hosts)) as pool:  # all at once: each waits for the others
        answers = list(pool.map(share, range(len(asked.hosts))))
    if problems := [answer.problem for answer in answers if answer.problem]:
        return 0.0, "; ".join(problems)
    return float(answers[0].output.split()[-1]), None
