"""Which rank of which job a process is, where the job's referee listens, and how long silence may last."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from rankdrift.errors import UserError

SILENCE = "RANKDRIFT_SILENCE"
HANG = "RANKDRIFT_HANG"
SILENCE_SECONDS = 20.0
OF_TIMEOUT = 0.9
"""A hang is noticed before collectives time out, since NCCL then ends ranks that only waited."""
FIRST_PORT, PORTS, ATTEMPTS = 10000, 19000, 4


@dataclass(frozen=True)
class Place:
    """A rank of a job."""

    rank: int
    local_rank: int
    world_size: int
    host: str
    address: str
    """Of rank 0's machine."""
    job: str
    """What tells two jobs of one machine apart: their MASTER_PORT."""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """Return what a launcher says of this process."""
        return cls(
            int(environment["RANK"]),
            int(environment.get("LOCAL_RANK", "0")),
            int(environment["WORLD_SIZE"]),
            socket.gethostname(),
            environment["MASTER_ADDR"],
            environment["MASTER_PORT"],
        )

    @property
    def ports(self) -> range:
        """Where the referee may listen: below the ports that systems give to connections."""
        first = FIRST_PORT + int(self.job) % PORTS
        return range(first, first + ATTEMPTS)


@dataclass(frozen=True)
class Limits:
    """Seconds after which a rank counts as lost."""

    silence: float = SILENCE_SECONDS
    """Without a word from its guard, or stopped."""
    hang: float = math.inf
    """Within one part of a step: a micro-batch, an update."""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """Return what the environment says.

        ``RANKDRIFT_SILENCE`` and ``RANKDRIFT_HANG``, seconds; by default 20, and nine tenths of
        DEEPSPEED_TIMEOUT's minutes, or of DeepSpeed's own 10.
        """
        waits = 60 * _number(environment, "DEEPSPEED_TIMEOUT", 10.0)
        silence = _number(environment, SILENCE, SILENCE_SECONDS)
        return cls(silence, _number(environment, HANG, OF_TIMEOUT * waits))

    @property
    def beat(self) -> float:
        """Seconds between two messages of a guard."""
        return min(1.0, self.silence / 5)


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if not number > 0:
        raise UserError(f"{name}={text}: not a number above 0 (inf: no limit); change or unset it")
    return number
