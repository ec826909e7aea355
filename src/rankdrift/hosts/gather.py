"""Brings what other machines have of a run, or of a study, into this machine's folder, by rsync.

A checkpoint of which machines hold parts becomes an ordinary whole one: the missing files are copied, all are
read and compared with what the manifest states of them, and then the manifest is replaced by one that speaks
of one folder. Until then the folder is the part it was, so a gathering that is killed goes on where it was.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.hosts.interface import is_own
from rankdrift.hosts.ssh import REFUSALS, Ssh
from rankdrift.layout import RunLayout, StudyLayout, step_of
from rankdrift.zero_checkpoint.checksums import stored_file
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME, Manifest
from rankdrift.zero_checkpoint.rotation import held

Say = Callable[[str], None]
PARTIAL = ".rsync-partial"
NOT_A_RUN = (
    ".lock",
    ".*.lock",
    "driver.json",
    ".*.tmp",
    ".*.old",
    ".*.gather",
    ".seen-*",
    PARTIAL,
    "/checkpoints/step-*",
)
"""What is left where it is: locks, what is not finished, and checkpoints, which have a way of their own."""


@dataclass(frozen=True)
class Source:
    """A folder on a machine, or on this one."""

    host: str | None
    folder: Path

    @classmethod
    def parse(cls, text: str, default: Path) -> Source:
        """Return what ``HOST:FOLDER``, ``HOST:`` (the same folder as here) or a local folder names."""
        host, colon, folder = text.partition(":")
        if not colon or "/" in host:
            return cls(None, Path(text))
        if not host:
            raise UserError(f"--from {text}: names no host; write HOST:FOLDER, or a folder of this machine")
        return cls(host, Path(folder) if folder else default.absolute())

    def __truediv__(self, name: str) -> Source:
        return Source(self.host, self.folder / name)

    def __str__(self) -> str:
        return f"{self.host}:{self.folder}" if self.host else str(self.folder)


@dataclass(frozen=True)
class Rsync:
    """rsync over ssh; nothing is asked for."""

    ssh: Ssh

    def copy(self, source: Source, target: Path, *options: str) -> None:
        """Copy what is in a folder into another one; raise UserError that names the machine."""
        target.mkdir(parents=True, exist_ok=True)
        shell = ["-e", " ".join(self.ssh.command)] if source.host else []
        command = ["rsync", "-a", f"--partial-dir={PARTIAL}", *shell, *options, f"{source}/", f"{target}/"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(
                "rsync: no such command; install it here and there (apt-get install rsync)"
            ) from None
        if done.returncode:
            raise UserError(f"{source}: {_reason(source, done.stderr)}")


def sources_of(hosts: Sequence[str], folder: Path) -> list[Source]:
    """Return the same folder on every machine of a list but this one."""
    others = [host for host in hosts if not _is_here(host)]
    return [Source(host, folder.absolute()) for host in others]


def gather(target: Path, sources: Sequence[Source], ssh: Ssh, say: Say) -> None:
    """Bring what the sources have of a run or of a study; what is here already is not copied again.

    Raises
    ------
    UserError
        Where a source cannot be read, or nobody has a file of a checkpoint: which, and who wrote it.
    IntegrityError
        Where a file that was brought is not the one that was written.

    """
    rsync = Rsync(ssh)
    with tempfile.TemporaryDirectory() as scratch:
        listed = [
            _listed(rsync, source, Path(scratch) / str(number)) for number, source in enumerate(sources)
        ]
        groups = sorted({group for one in listed for group in one})
        if not groups:
            raise UserError(f"no run in {', '.join(map(str, sources))}; name a run's folder or a study's")
        for group in groups:
            have = [one[group] for one in listed if group in one]
            _gather_group(rsync, have, target / group if group else target, say)


@dataclass(frozen=True)
class _Listed:
    """What a source has: its runs, and of each run's checkpoints the manifests alone, in a local folder."""

    source: Source
    runs: Mapping[str, RunLayout]
    """By name; a run's own folder has the name ""."""

    def source_of(self, name: str) -> Source:
        return self.source / "runs" / name if name else self.source


def _gather_group(rsync: Rsync, found: Sequence[_Listed], target: Path, say: Say) -> None:
    """Bring the runs of a study that is one group, or of a group, or a run alone."""
    for one in found:
        _bring_study(rsync, one, target)
    for name in sorted({name for one in found for name in one.runs}):
        run = RunLayout(target if name == "" else StudyLayout(target).run(name).root)
        here = [one for one in found if name in one.runs]
        _gather_run(rsync, run, [(one.source_of(name), one.runs[name]) for one in here], say)


def _listed(rsync: Rsync, source: Source, scratch: Path) -> dict[str, _Listed]:
    """Fetch the manifests of a source; return what it has by group, a study of one group and a run as ""."""
    rsync.copy(
        source, scratch, "--include=*/", f"--include={MANIFEST_NAME}", "--include=spec.json", "--exclude=*"
    )
    if (scratch / "checkpoints").is_dir() or (scratch / "spec.json").exists():
        return {"": _Listed(source, {"": RunLayout(scratch)})}
    folders = {"": scratch} | {folder.name: folder for folder in sorted(scratch.iterdir())}
    of_groups = {
        group: {one.name: RunLayout(one) for one in sorted(StudyLayout(folder).runs.iterdir())}
        for group, folder in folders.items()
        if StudyLayout(folder).runs.is_dir()
    }
    return {
        group: _Listed(source / group if group else source, runs) for group, runs in of_groups.items() if runs
    }


def _bring_study(rsync: Rsync, listed: _Listed, target: Path) -> None:
    """Bring what is beside the runs of a study; what is newer here stays."""
    if "" not in listed.runs:
        rsync.copy(
            listed.source, target, "--update", "--exclude=/runs", *(f"--exclude={name}" for name in NOT_A_RUN)
        )


def _gather_run(rsync: Rsync, run: RunLayout, found: Sequence[tuple[Source, RunLayout]], say: Say) -> None:
    for source, _ in found:
        rsync.copy(source, run.root, "--update", *(f"--exclude={name}" for name in NOT_A_RUN))
    steps = {step for _, one in found for step in _steps(one)}
    for step in sorted(steps):
        have = [(source, one) for source, one in found if step in _steps(one)]
        _gather_step(
            rsync, run, step, [(source, Manifest.stated(one.checkpoint(step))) for source, one in have], say
        )


def _steps(run: RunLayout) -> list[int]:
    """Return the steps of which there is a manifest."""
    found = run.checkpoints.glob(f"*/{MANIFEST_NAME}")
    return sorted(step for path in found if (step := step_of(path.parent.name)) is not None)


def _gather_step(
    rsync: Rsync, run: RunLayout, step: int, found: Sequence[tuple[Source, Manifest]], say: Say
) -> None:
    """Make a step's checkpoint whole."""
    folder = run.checkpoint(step)
    own = Manifest.stated(folder) if (folder / MANIFEST_NAME).exists() else None
    if own and own.here is None:
        say(f"{folder}: whole")
        return
    wanted = own or found[0][1]
    same = [(source, manifest) for source, manifest in found if manifest.content == wanted.content]
    holders = {name: source for source, manifest in reversed(same) for name in manifest.names_here}
    missing = [name for name in wanted.files if not own or name not in own.names_here]
    if lost := [name for name in missing if name not in holders]:
        raise UserError(_lost(folder, wanted, lost, found))
    work = folder if own else folder.with_name(f".{folder.name}.gather")
    work.mkdir(parents=True, exist_ok=True)
    with held(work) as free:
        if not free:
            raise UserError(f"{folder}: somebody is reading or removing it; try again")
        for source, names in _by_source(missing, holders):
            _fetch(rsync, source / "checkpoints" / folder.name, work, names)
        _require_written(work, wanted.whole(), holders)
        shutil.rmtree(work / PARTIAL, ignore_errors=True)
        wanted.whole().keep(work)
        if work != folder:
            work.rename(folder)
            files.sync_folder(folder.parent)
    say(f"{folder}: {len(missing)} of {len(wanted.files)} files brought; whole now")


def _by_source(names: Sequence[str], holders: Mapping[str, Source]) -> Iterator[tuple[Source, list[str]]]:
    for source in dict.fromkeys(holders[name] for name in names):
        yield source, [name for name in names if holders[name] == source]


def _fetch(rsync: Rsync, source: Source, work: Path, names: Sequence[str]) -> None:
    """Copy some files of a checkpoint; those that are here in full are known by size and time."""
    with tempfile.NamedTemporaryFile("w", suffix=".names") as listed:
        listed.write("\n".join(names) + "\n")
        listed.flush()
        rsync.copy(source, work, f"--files-from={listed.name}")


def _require_written(work: Path, manifest: Manifest, holders: Mapping[str, Source]) -> None:
    """Raise IntegrityError unless all files are as they were written; what was brought wrong is removed."""
    for name, stated in manifest.files.items():
        if stored_file(work / name) != stated:
            source = f"{holders[name]}/checkpoints" if name in holders else "this machine"
            if name in holders:
                (work / name).unlink()
            raise IntegrityError(
                f"{work / name} (from {source}): not the file that was written; use another step"
            )


def _lost(
    folder: Path, wanted: Manifest, lost: Sequence[str], found: Sequence[tuple[Source, Manifest]]
) -> str:
    writers = sorted({part.host for part in wanted.parts if set(part.files) & set(lost)}) or ["HOST"]
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return (
        f"{folder}: {lost[0]}{more}, written on {', '.join(writers)}, is not in "
        f"{', '.join(str(source) for source, _ in found)}; name that machine too: --from {writers[0]}:FOLDER"
    )


def _reason(source: Source, said: str) -> str:
    for sign, meaning in REFUSALS:
        if sign in said.lower():
            return meaning.format(host=source.host)
    if "change_dir" in said or "link_stat" in said:
        return "no such folder, or it has gone meanwhile; name the run's or the study's folder there"
    lines = said.strip().splitlines()
    return lines[0] if lines else "rsync failed"


def _is_here(host: str) -> bool:
    """Whether a name is this machine's."""
    try:
        return host == socket.gethostname() or is_own(socket.gethostbyname(host))
    except OSError:
        return False
