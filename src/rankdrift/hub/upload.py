"""Uploads: one commit that has all of it, over nothing that was not to be replaced, compared afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankdrift.data.summary import Summary
from rankdrift.data.token_table import TaskTables
from rankdrift.errors import IntegrityError, UserError
from rankdrift.hub.artifact import NAMED
from rankdrift.hub.connection import answers, hub, require_token
from rankdrift.hub.repository import Differences, Repository, differences, find
from rankdrift.hub.staging import Staged, staged_data, staged_folder
from rankdrift.progress import Say, byte_lines
from rankdrift.spec import Spec
from rankdrift.tasks import Split

MESSAGE = "Uploaded by rankdrift"


def upload_folder(folder: Path, name: str, force: bool, private: bool, say: Say) -> str:
    """Upload an adapter's or model's folder, or a study's tables; return where they are.

    Parameters
    ----------
    folder
        Of an export, a merged model, any other model or adapter, tables, or a study.
    name
        OWNER/NAME of the repository, which is made if it is not there.
    force
        Replace what is there, if it is something else: all of it.
    private
        Make a repository that only its owner sees.
    say
        Takes lines.

    Raises
    ------
    UserError
        If nobody is logged in, the folder holds nothing to upload, the repository holds something else, or
        the hub refuses.
    IntegrityError
        If a file is not what its account states before, or not what is here afterwards.

    """
    require_token(name)
    with staged_folder(folder, byte_lines(say, f"{folder}: own checksums")) as staged:
        return _send(staged, name, force, private, say)


def upload_data(
    spec: Spec,
    tables: dict[Split, TaskTables],
    summaries: Sequence[Summary],
    name: str,
    force: bool,
    private: bool,
    say: Say,
) -> str:
    """Upload prepared rows as Parquet, a file a task and split; return where they are.

    Otherwise as ``upload_folder``.
    """
    require_token(name)
    with staged_data(spec, tables, summaries) as staged:
        return _send(staged, name, force, private, say)


def _send(staged: Staged, name: str, force: bool, private: bool, say: Say) -> str:
    there = find(name, staged.kind) or _created(name, staged, private)
    if private and not there.private:
        raise UserError(
            f"{name}: is public already; make it private at {there.url}/settings, or use another name"
        )
    found = differences(there, staged.folder)
    if not found:
        say(f"{name}: up to date")
        return there.url
    if there.sizes and not force:
        raise UserError(f"{name}: holds something else ({found}); use --force to replace it, or another name")
    commit = _commit(staged, there, found, say)
    _require_arrived(staged, name, commit)
    say(f"{name}: {NAMED[staged.sort]} as here, at commit {commit[:12]}")
    return there.url


def _created(name: str, staged: Staged, private: bool) -> Repository:
    with answers(name):
        hub().create_repo(name, repo_type=staged.kind, private=private or None, exist_ok=True)
    there = find(name, staged.kind)
    if there is None:
        raise UserError(
            f"{name}: was made and is not there; give OWNER/NAME, of an owner whose token this is"
        )
    return there


def _commit(staged: Staged, there: Repository, found: Differences, say: Say) -> str:
    """Send what differs, then change all of it at once; return the commit.

    Large files go one after the other before the commit, so that there is progress to tell of; what is
    interrupted has changed nothing, and the hub does not ask for them again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, names = hub(), (*found.changed, *found.only_here)
    sizes = {name: (staged.folder / name).stat().st_size for name in names}
    say(f"{there.name}: sending {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    progress, done = byte_lines(say, f"{there.name}: sent"), 0
    additions = [CommitOperationAdd(name, staged.folder / name) for name in names]
    with answers(there.name):
        for addition in additions:
            api.preupload_lfs_files(there.name, [addition], repo_type=there.kind)
            done += sizes[addition.path_in_repo]
            progress(done, sum(sizes.values()))
        committed = api.create_commit(
            there.name,
            [*additions, *map(CommitOperationDelete, found.only_there)],
            commit_message=MESSAGE,
            repo_type=there.kind,
            parent_commit=there.commit,  # what was compared
        )
    return str(committed.oid)


def _require_arrived(staged: Staged, name: str, commit: str) -> None:
    there = find(name, staged.kind, commit)
    found = differences(there, staged.folder) if there else None
    if there is None or found:
        raise IntegrityError(
            f"{name}: is not what was sent, by its checksums ({found or 'it is gone'}): damaged on the way; "
            "upload again with --force"
        )
