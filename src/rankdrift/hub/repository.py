"""A repository of the hub: what it states of its files, and how a folder here differs from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankdrift.errors import UserError
from rankdrift.hub.connection import answers, hub

Kind = Literal["model", "dataset"]
KINDS: tuple[Kind, ...] = ("model", "dataset")
OF_THE_HUB = ".gitattributes"
"""The file that the hub makes in every repository; no part of what is kept there."""
TIMEOUT = 10.0  # seconds for the first answer


@dataclass(frozen=True)
class Repository:
    """A repository as it is at one commit."""

    name: str
    """OWNER/NAME."""
    kind: Kind
    commit: str
    private: bool
    sizes: Mapping[str, int]
    """File -> bytes, but for what the hub adds itself."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    @property
    def url(self) -> str:
        """Where a browser shows it."""
        return f"{hub().endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


@dataclass(frozen=True)
class Differences:
    """How a folder differs from a repository; false where it does not."""

    changed: tuple[str, ...]
    """Files of another content, by SHA-256, or Git's SHA-1 of small ones."""
    only_there: tuple[str, ...]
    only_here: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.only_there or self.only_here)

    def __str__(self) -> str:
        named = [f"{name} differs" for name in self.changed]
        named += [f"{name} is there and not here" for name in self.only_there]
        named += [f"{name} is here and not there" for name in self.only_here]
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        return f"{named[0]}{more}" if named else "nothing differs"


def find(name: str, kind: Kind, revision: str | None = None) -> Repository | None:
    """Return a repository at a revision (its newest commit), or None where there is none of that kind.

    Raises
    ------
    UserError
        If the name cannot be one, if there is no such revision, or if the hub does not answer.

    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = hub()
    with answers(name):
        try:
            info = api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
        except GatedRepoError:  # it is there
            raise
        except RepositoryNotFoundError:
            return None
        assert info.sha is not None
        listed = api.list_repo_tree(name, recursive=True, revision=info.sha, repo_type=kind)
        sizes = {file.path: file.size for file in listed if isinstance(file, RepoFile)}
    sizes.pop(OF_THE_HUB, None)
    return Repository(name, kind, info.sha, bool(info.private), sizes)


def find_any(given: str, revision: str | None = None) -> Repository | None:
    """Return the repository of a name, of models or of data sets: ``datasets/OWNER/NAME`` says which.

    Raises UserError as ``find`` does, and where there is one of each kind.
    """
    first, _, rest = given.partition("/")
    said = next((kind for kind in KINDS if first == f"{kind}s" and "/" in rest), None)
    if said:
        return find(rest, said, revision)
    there = [found for kind in KINDS if (found := find(given, kind, revision))]
    if len(there) > 1:
        raise UserError(
            f"{given}: a model and a data set have this name; say models/{given} or datasets/{given}"
        )
    return there[0] if there else None


def differences(there: Repository, folder: Path) -> Differences:
    """Compare all files below a folder with what the hub states of them; all of their bytes are read."""
    with answers(there.name):
        found = hub().verify_repo_checksums(
            there.name, repo_type=there.kind, revision=there.commit, local_dir=folder
        )
    return Differences(
        changed=tuple(mismatch["path"] for mismatch in found.mismatches),
        only_there=tuple(path for path in found.missing_paths if path != OF_THE_HUB),
        only_here=tuple(found.extra_paths),
    )
