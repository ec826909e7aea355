"""Base models in the cache, as a training would find them, compared with what the hub states of them."""

from __future__ import annotations

from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.hub.artifact import NAMED, sort_of
from rankdrift.hub.cached import check_cached, into_cache
from rankdrift.hub.repository import Repository, find_any
from rankdrift.models.base import HUB_PATTERNS, hub_id, resolve
from rankdrift.progress import Say


def fetch_base(name: str, revision: str | None, say: Say) -> Path:
    """Return the folder of a base model, which is fetched or converted if need be.

    Raises
    ------
    UserError
        If nothing by that name can be had, or if it is no base model.
    IntegrityError
        If a file of the cache is not what the hub states.

    """
    there = _at_the_hub(name, revision, say)
    if there is None:  # it is made, or here already, or nowhere
        return resolve(name, revision)
    sort = sort_of(there.sizes)
    if sort in ("adapter", "data", "tables"):
        raise UserError(f"{name}: holds {NAMED[sort]}, no base model; say with --to FOLDER where it goes")
    into_cache(there, revision, HUB_PATTERNS, say)
    count = check_cached(there.name, there.kind, there.commit)
    say(f"{name}: {count} files are as the hub states them, at commit {there.commit[:12]}")
    return resolve(name, revision)


def _at_the_hub(name: str, revision: str | None, say: Say) -> Repository | None:
    """Return the repository of a base model where the hub has it and answers."""
    repository = hub_id(name)
    if repository is None:
        return None
    try:
        return find_any(repository, revision)
    except UserError as error:  # it may be in the cache, or be had from elsewhere
        say(f"not compared with the hub: {error}")
        return None
