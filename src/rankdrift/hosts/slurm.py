"""Slurm's names for what a rank must know, and how it writes lists of hosts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from rankdrift.errors import UserError

PORTS = range(20000, 60000)
"""Out of which a job's number picks the port of rank 0."""


def describe_rank(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE and so on for a task that ``srun`` started; others are left as they are.

    What is set already stays: a launcher that runs below ``srun`` knows better. Raises UserError where Slurm
    has not said where rank 0 is.
    """
    if "RANK" in environment or not is_task(environment):
        return
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST")
    if not hosts:
        raise UserError(
            "SLURM_NODELIST is not set: Slurm has not said where rank 0 is; start ranks with srun"
        )
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "1")
    node = int(environment.get("SLURM_NODEID", "0"))
    here = str(tasks_per_node(tasks)[node])
    said = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": here,
        "LOCAL_SIZE": here,
    }
    environment.update(said)
    environment.setdefault("MASTER_ADDR", host_names(hosts)[0])
    environment.setdefault("MASTER_PORT", str(port_of(environment.get("SLURM_JOB_ID", "0"))))


def is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process: a batch job's shell has a task's number as well, but no step."""
    needed = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID")
    return all(name in environment for name in needed)


def host_names(compressed: str) -> list[str]:
    """Return the hosts that a list of Slurm's names, in order.

    >>> host_names("gpu[01-03,7],login")
    ['gpu01', 'gpu02', 'gpu03', 'gpu7', 'login']
    """
    names = []
    for entry in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", compressed):
        names += _expanded(entry)
    return names


def tasks_per_node(compressed: str) -> list[int]:
    """Return how many tasks each node has.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    counts: list[int] = []
    for entry in compressed.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry.strip())
        if not match:
            raise UserError(f"SLURM_TASKS_PER_NODE={compressed}: not understood; start ranks with srun")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def port_of(job: str) -> int:
    """Return the port for a job's rank 0: the same on all nodes, and another one for the next job."""
    return PORTS[int(re.sub(r"\D", "", job) or 0) % len(PORTS)]


def _expanded(entry: str) -> list[str]:
    """Return the names of one entry, whose first bracket is taken apart."""
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", entry)
    if not match:
        return [entry]
    before, ranges, behind = match.groups()
    numbers = [number for part in ranges.split(",") for number in _numbers(part)]
    return [name for number in numbers for name in _expanded(f"{before}{number}{behind}")]


def _numbers(part: str) -> list[str]:
    first, _, last = part.partition("-")
    if not last:
        return [first]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
