"""Which ranks see the same folder of a run. Where not all do, each place keeps what its own ranks write.

Machines may share a folder, or have one each under the same name. Host names do not tell which, so the ranks
look: one of each machine makes a file, and those who see the same files share a folder.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.training.collectives import gather, rank, world_size


@dataclass(frozen=True)
class Place:
    """Ranks that share a folder."""

    host: str
    """The name of the machine of the first of them."""
    ranks: tuple[int, ...]

    @property
    def leader(self) -> int:
        """The rank that does what is to be done once in the folder."""
        return self.ranks[0]


@dataclass(frozen=True)
class Places:
    """All places of a run, in the order of their leaders; none where the ranks share one folder."""

    apart: tuple[Place, ...] = ()
    own: int = 0
    """The number of this rank's place."""

    @property
    def leads(self) -> bool:
        """Whether this rank leads its place."""
        return rank() == (self.apart[self.own].leader if self.apart else 0)

    @property
    def peers(self) -> tuple[int, ...]:
        """The ranks of this place."""
        return self.apart[self.own].ranks if self.apart else tuple(range(world_size()))

    def on_leaders(self, action: Callable[[], None]) -> None:
        """Do something once in every folder; raise OSError on every rank where it fails, with the host."""
        failure = None
        if self.leads:
            try:
                action()
            except (OSError, UserError) as error:
                failure = f"{socket.gethostname()}: {error}" if self.apart else str(error)
        if failures := [found for found in gather(failure) if found]:
            raise OSError(failures[0])


TOGETHER = Places()


def find_places(folder: Path) -> Places:
    """Make a folder on every machine and return who shares it; every rank must call it.

    Raises UserError on every rank where a machine cannot make it.
    """
    mark = folder / f".seen-{secrets.token_hex(8)}"
    marks = _make(folder, mark if os.environ.get("LOCAL_RANK", "0") == "0" else None)
    seen = tuple((folder / name).exists() for name in marks)
    every = gather((socket.gethostname(), seen))  # all have looked once it is there
    mark.unlink(missing_ok=True)
    groups: dict[tuple[bool, ...], list[int]] = {}
    for number, (_, view) in enumerate(every):
        groups.setdefault(view, []).append(number)
    if len(groups) == 1:
        return TOGETHER
    apart = tuple(Place(every[ranks[0]][0], tuple(ranks)) for ranks in groups.values())
    return Places(apart, list(groups).index(seen))


def common_folder(folder: Path) -> Path:
    """Return the folder as rank 0 names it, where ranks started in different folders; else as it is."""
    named = gather(str(folder.absolute()))
    return folder if len(set(named)) == 1 else Path(named[0])


def _make(folder: Path, mark: Path | None) -> list[str]:
    """Make this rank's mark, if it makes one; return the names of all."""
    failure = None
    if mark:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            failure = f"{socket.gethostname()}: {folder} cannot be written to ({error.strerror})"
    every = gather((mark.name if mark else None, failure))
    if failures := [found for _, found in every if found]:
        raise UserError(f"{failures[0]}; choose another folder (output=FOLDER), or another host")
    return [name for name, _ in every if name]
