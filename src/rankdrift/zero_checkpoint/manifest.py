"""The file that says a sharded checkpoint is whole: its manifest ``checkpoint.json``, written last.

DeepSpeed names a checkpoint in ``latest`` before every rank has finished writing it, and a killed job
leaves a folder that looks like any other. So a folder is a checkpoint only if its ``checkpoint.json``
is there, unaltered, and every file it lists has the size (and, where all is read, the checksum) it lists.
Where machines share no folder, each has a part of a checkpoint: its manifest lists all files and says which
of them lie where, and the part is whole if those are that lie here. No torch here: a launcher may ask.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import xxhash

from rankdrift import files, layout
from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.checksums import StoredFile, directory_checksum, flush, stored_file

MANIFEST_NAME = "checkpoint.json"
CHECKSUM_KEY = "record_checksum"

Progress = Callable[[int], None]  # takes the bytes just read


@dataclass(frozen=True)
class Part:
    """What one machine holds of a checkpoint that machines without a common folder wrote."""

    host: str
    """The machine's name for itself."""
    files: tuple[str, ...]
    """Of the checkpoint's files, those it holds."""


@dataclass(frozen=True)
class Manifest:
    """What one sharded checkpoint holds, and under which settings it was trained."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = {"extra": "forbid", "strict": True}

    step: int
    """Optimizer steps taken."""
    world_size: int
    """Ranks that wrote shards."""
    zero_stage: int
    """ZeRO stage, 0 to 3."""
    method: str
    """How it was trained: full or lora."""
    precision: str
    """Arithmetic of the model: fp32 or bf16. Master weights are fp32."""
    spec_digest: str
    """SHA-256 of the run's identity: whatever can change a trained weight."""
    base: str
    """Folder of the base model."""
    base_digest: str
    """Digest of the base model's weights."""
    data_position: int
    """Rows of training data consumed."""
    seed: int
    """Seed of the run. Every random number of training is drawn from (seed, step, rank): there is no other
    state of a generator to keep."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    """Size and checksum of every file of the checkpoint, by its name relative to the folder."""
    directories: dict[str, str] = field(default_factory=dict)
    """Checksum of the zip directory of every file that has one: enough to know a file by, and short."""
    parts: tuple[Part, ...] = ()
    """Which machine wrote which files, by node; empty where all files lie in one folder."""
    here: int | None = None
    """The node whose part lies in this folder; None where all files do."""

    @property
    def names_here(self) -> tuple[str, ...]:
        """The files that lie in this folder."""
        return tuple(self.files) if self.here is None else self.parts[self.here].files

    @property
    def content(self) -> str:
        """Digest of what the checkpoint is, wherever its files lie."""
        return files.digest_json(dataclasses.asdict(dataclasses.replace(self, parts=(), here=None)))

    def whole(self) -> Manifest:
        """Return what a folder with all of the files states."""
        return dataclasses.replace(self, parts=(), here=None)

    def write(self, folder: Path, written: Mapping[str, StoredFile] | None = None) -> Manifest:
        """Flush the folder to the disk, then write what is in it; return the manifest as written.

        Call it on one rank, once every rank has written its shards. ``written`` states what the writers put
        into them; a file that it does not name is read. Raises OSError where a file is not as stated.
        """
        return self.described(folder, written or {}).keep(folder)

    def described(self, folder: Path, written: Mapping[str, StoredFile]) -> Manifest:
        """Flush the folder to the disk; return the manifest that lists its files, not yet written."""
        sync_tree(folder)
        stored = {name: _stored(folder, name, written) for name in _names(folder)}
        directories = {name: directory_checksum(folder / name) for name in stored}
        known = {name: checksum for name, checksum in directories.items() if checksum}
        return dataclasses.replace(self, files=stored, directories=known)

    def keep(self, folder: Path) -> Manifest:
        """Write the manifest into a folder that has what it lists; return it."""
        tree = dataclasses.asdict(self)
        files.write_json(folder / MANIFEST_NAME, {**tree, CHECKSUM_KEY: _checksum(tree)})
        return self

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return a checkpoint's manifest; it, the files' sizes and their zip directories are checked.

        Raises UserError where there is no checkpoint, or some of its files are on other machines,
        IntegrityError where it is not what was written.
        """
        manifest = cls.read_part(folder)
        if elsewhere := manifest.elsewhere():
            raise UserError(_where(folder, manifest, elsewhere))
        return manifest

    @classmethod
    def read_part(cls, folder: Path) -> Manifest:
        """Return the manifest of a checkpoint of which other machines may hold other parts.

        It, and the files that lie here, are checked as ``read`` does.
        """
        manifest = cls._read(folder)
        for name in manifest.names_here:
            checksum = manifest.directories.get(name)
            if checksum and directory_checksum(folder / name) != checksum:
                raise IntegrityError(
                    f"{folder / name}: not the file that was written (swapped or damaged); use another step, "
                    "or copy the file again"
                )
        return manifest

    @classmethod
    def stated(cls, folder: Path) -> Manifest:
        """Return what the manifest of a folder says, whose other files are not looked at."""
        return _parse(cls, folder / MANIFEST_NAME)

    def elsewhere(self) -> dict[str, int]:
        """Return which files are not here, and of which node each is."""
        if self.here is None:
            return {}
        held = set(self.names_here)
        of = {name: node for node, part in enumerate(self.parts) for name in part.files}
        return {name: of[name] for name in self.files if name not in held}

    @classmethod
    def _read(cls, folder: Path) -> Manifest:
        """Return a checkpoint's manifest; no file is opened but the manifest itself."""
        path = folder / MANIFEST_NAME
        if not path.exists():
            raise UserError(
                f"{folder}: not a complete checkpoint ({MANIFEST_NAME} is missing); use another step"
            )
        manifest = _parse(cls, path)
        if layout.step_of(folder.name) not in (None, manifest.step):
            raise IntegrityError(f"{path}: states step {manifest.step}; the folder was renamed or swapped")
        for name in manifest.names_here:
            _check_size(folder / name, manifest.files[name].size)
        return manifest

    def check_contents(
        self, folder: Path, progress: Progress | None = None, names: Iterable[str] | None = None
    ) -> None:
        """Read every file that lies here; raise IntegrityError unless it is the one that was written.

        ``names``: of the files, those alone.
        """
        for name in self.names_here if names is None else names:
            file = self.files[name]
            _check_size(folder / name, file.size)
            found = stored_file(folder / name, progress).checksum
            if found != file.checksum:
                raise IntegrityError(
                    f"{folder / name}: checksum {found} where {file.checksum} was written (altered or "
                    "swapped); use another step, or copy the file again"
                )


def joined(parts: Sequence[Manifest], hosts: Sequence[str], here: int | None) -> Manifest:
    """Return a checkpoint's manifest out of those of its machines' folders, as node ``here`` keeps it."""
    stored = {name: file for part in parts for name, file in part.files.items()}
    directories = {name: checksum for part in parts for name, checksum in part.directories.items()}
    of = tuple(Part(host, tuple(part.files)) for host, part in zip(hosts, parts, strict=True))
    return dataclasses.replace(
        parts[0],
        files=dict(sorted(stored.items())),
        directories=dict(sorted(directories.items())),
        parts=of,
        here=here,
    )


def newest(checkpoints: Path) -> int | None:
    """Return the newest step with a whole checkpoint, or None. The file ``latest`` is not believed."""
    return max(complete_steps(checkpoints), default=None)


def complete_steps(checkpoints: Path) -> list[int]:
    """Return the sorted steps whose checkpoints, or parts of one, are whole."""
    return [
        step for step in layout.steps_in(checkpoints) if _is_complete(checkpoints / layout.step_name(step))
    ]


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder to the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def _where(folder: Path, manifest: Manifest, elsewhere: Mapping[str, int]) -> str:
    """Say which machine holds what a folder lacks, and how it comes here."""
    nodes = sorted(set(elsewhere.values()))
    held = "; ".join(
        f"node {node} ({manifest.parts[node].host}) holds "
        + ", ".join(name for name, of in elsewhere.items() if of == node)
        for node in nodes
    )
    run = folder.absolute().parent.parent
    sources = " ".join(f"{manifest.parts[node].host}:{run}" for node in nodes)
    return (
        f"{folder}: has {len(manifest.names_here)} of the checkpoint's {len(manifest.files)} files; {held}. "
        f"Bring them with: rankdrift gather {run} --from {sources}"
    )


def _is_complete(folder: Path) -> bool:
    try:
        Manifest._read(folder)
    except UserError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    """Return the names of a folder's files, relative to it, sorted; without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _stored(folder: Path, name: str, known: Mapping[str, StoredFile]) -> StoredFile:
    if name not in known:
        return stored_file(folder / name)
    size = (folder / name).stat().st_size
    if size != known[name].size:
        raise OSError(f"{name} has {size} bytes after {known[name].size} were written")
    return known[name]


def _checksum(tree: Any) -> str:
    return xxhash.xxh3_128(files.canonical_json(tree).encode()).hexdigest()


@functools.cache  # it takes longer to make than to read a manifest by it
def _schema() -> pydantic.TypeAdapter[Manifest]:
    return pydantic.TypeAdapter(Manifest)


def _parse(cls: type[Manifest], path: Path) -> Manifest:
    try:
        tree = files.read_json(path)
        stated = tree.pop(CHECKSUM_KEY, None) if isinstance(tree, dict) else None
        manifest = _schema().validate_json(files.canonical_json(tree))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise IntegrityError(
            f"{path}: not a manifest of this version of rankdrift ({where}: {first['msg']}); use another step"
        ) from None
    except UserError as error:
        raise IntegrityError(str(error)) from None
    if stated != _checksum(tree):
        raise IntegrityError(f"{path}: altered since it was written; use another step")
    return manifest


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise IntegrityError(f"{path}: missing from the checkpoint; use another step or copy the file again")
    found = path.stat().st_size
    if found != size:
        raise IntegrityError(
            f"{path}: {found} bytes where {size} were written (truncated or overwritten); use another step"
        )
