"""What the hub's library keeps in its cache: fetched with progress, compared with what the hub states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rankdrift.errors import IntegrityError
from rankdrift.hub.bars import bar_class
from rankdrift.hub.connection import answers, hub
from rankdrift.hub.repository import Kind, Repository
from rankdrift.progress import Say, byte_lines


def into_cache(there: Repository, revision: str | None, patterns: Sequence[str], say: Say) -> None:
    """Fetch the files of a repository whose names fit a pattern; raise UserError where that fails."""
    from huggingface_hub import snapshot_download

    with answers(there.name):
        snapshot_download(
            there.name,
            repo_type=there.kind,
            revision=revision,
            allow_patterns=list(patterns),
            endpoint=hub().endpoint,
            tqdm_class=bar_class(byte_lines(say, f"{there.name}: fetched"), there.size),
        )


def check_cached(name: str, kind: Kind, commit: str | None = None) -> int:
    """Compare cached files of a repository with what the hub states of them; return how many there are.

    Of one commit, or of all that are cached. A file that differs is removed, since what reads the cache would
    take it for whole.

    Raises
    ------
    IntegrityError
        If a file differs; it is named.
    UserError
        If the hub does not answer.

    """
    count = 0
    for cached in _commits(name, kind) if commit is None else [commit]:
        with answers(name):
            found = hub().verify_repo_checksums(name, repo_type=kind, revision=cached, cache_dir=_cache())
        for mismatch in found.mismatches:
            (found.verified_path / mismatch["path"]).resolve().unlink(missing_ok=True)
        if found.mismatches:
            raise IntegrityError(
                f"{name}: {found.mismatches[0]['path']} in {found.verified_path} is not what the hub states, "
                "by its checksum: damaged on the way or on the disk, and removed; run this again to fetch it"
            )
        count += found.checked_count
    return count


def _commits(name: str, kind: Kind) -> Iterator[str]:
    """Yield the commits of a repository that are cached."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir(_cache()).repos
    except CacheNotFound:
        return
    for repository in repositories:
        if (repository.repo_id, repository.repo_type) == (name, kind):
            yield from sorted(revision.commit_hash for revision in repository.revisions)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
