"""An artifact of the hub in a folder: whole, as it was uploaded, or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.atomic_folder import take_place
from rankdrift.hub.artifact import EXPECTED, NAMED, check_account, sort_of
from rankdrift.hub.bars import bar_class
from rankdrift.hub.connection import LOG_IN, answers, hub
from rankdrift.hub.repository import OF_THE_HUB, Repository, differences, find_any
from rankdrift.progress import Say, byte_lines

SPARE = 64 * 2**20  # bytes beside the files: what a file system rounds up


def download(given: str, target: Path, revision: str | None, force: bool, say: Say) -> None:
    """Put a repository of ours into a folder; what a call that was killed had fetched is not fetched again.

    Parameters
    ----------
    given
        OWNER/NAME, or datasets/OWNER/NAME.
    target
        A folder that is not there or empty, or has the same content already.
    revision
        A branch, a tag or a commit; the newest commit of all by default.
    force
        Replace what the folder holds.
    say
        Takes lines.

    Raises
    ------
    UserError
        If there is no such artifact, the folder holds something else, or the disk is too small.
    IntegrityError
        If a file is not what the hub, or its own account, states.

    """
    there = find_any(given, revision)
    if there is None:
        raise UserError(
            f"{given}: no such repository at {hub().endpoint}, or a private one; check the name, or {LOG_IN}"
        )
    sort = sort_of(there.sizes)
    if sort is None:
        raise UserError(f"{given}: holds nothing of rankdrift's: none of {EXPECTED}; check the name")
    if _is_there(there, target, force):
        say(f"{target}: up to date")
        return
    partial = target.resolve().with_name(f".{target.resolve().name}.partial")
    _require_space(partial, there.size)
    say(f"{given}: {NAMED[sort]}, {len(there.sizes)} files, {there.size / 1e6:.1f} MB")
    _transfer(there, partial, say)
    require_as_stated(there, partial)
    check_account(partial, byte_lines(say, f"{given}: own checksums"))
    take_place(partial, target.resolve())
    say(f"{target}: as the hub has it, at commit {there.commit[:12]}")


def _is_there(there: Repository, target: Path, force: bool) -> bool:
    """Whether a folder has the content already; raise UserError where it has another, unless ``force``."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; name a folder with --to")
    if not target.is_dir() or not any(target.iterdir()):
        return False
    found = differences(there, target)
    if found and not force:
        raise UserError(
            f"{target}: holds something else than {there.name} ({found}); use --force to replace all of it, "
            "or name another folder with --to"
        )
    return not found


def _require_space(folder: Path, size: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free, needed = shutil.disk_usage(folder.parent).free, size - here + SPARE
    if free < needed:
        raise UserError(
            f"{folder.parent}: {free / 1e9:.2f} GB free where {needed / 1e9:.2f} GB are to come; free some "
            "space, or name another folder with --to"
        )


def _transfer(there: Repository, folder: Path, say: Say) -> None:
    from huggingface_hub import snapshot_download

    with answers(there.name):
        snapshot_download(
            there.name,
            repo_type=there.kind,
            revision=there.commit,
            local_dir=folder,
            ignore_patterns=[OF_THE_HUB],
            endpoint=hub().endpoint,
            tqdm_class=bar_class(byte_lines(say, f"{there.name}: fetched"), there.size),
        )


def require_as_stated(there: Repository, folder: Path) -> None:
    """Raise IntegrityError unless a folder that was just filled has what the hub states.

    Files that differ are removed, so that the next call fetches them, and them alone, again.
    """
    found = differences(there, folder)
    for name in (*found.changed, *found.only_here):  # the latter of an older commit
        (folder / name).unlink()
    if found.changed or found.only_there:
        name = (*found.changed, *found.only_there)[0]
        raise IntegrityError(
            f"{there.name}: {name} is not what the hub states, by its checksum: damaged on the way; run this "
            "again, which fetches what was damaged alone"
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's, of what it had fetched
