"""All machines of a run must run the same code in the same versions: else it is nobody's result."""

from __future__ import annotations

import socket

from rankdrift.errors import UserError
from rankdrift.hosts.code import PACKAGE, code_digest, versions
from rankdrift.training.collectives import gather


def require_same_code() -> None:
    """Raise UserError on every rank, saying who differs in what; every rank must call it."""
    every = gather((socket.gethostname(), {"code": code_digest(), **versions()}))
    first, expected = every[0]
    for rank, (host, found) in enumerate(every):
        if found != expected:
            raise UserError(_difference(first, expected, f"{host} (rank {rank})", found))


def _difference(first: str, expected: dict[str, str], host: str, found: dict[str, str]) -> str:
    differing = [name for name in found if found[name] != expected[name] and name != "code"]
    if differing:
        what = ", ".join(f"{name} {found[name]} where {first} has {expected[name]}" for name in differing)
        return f"{host} has {what}; install the same versions on all hosts"
    return (
        f"{host} has other code in {PACKAGE} than {first} (digest {found['code'][:12]}, not "
        f"{expected['code'][:12]}); bring the same checkout to all hosts, for instance with rsync"
    )
