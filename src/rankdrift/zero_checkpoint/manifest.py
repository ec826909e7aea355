"""The file that says a sharded checkpoint is whole: its manifest ``checkpoint.json``, written last.

DeepSpeed names a checkpoint in ``latest`` before every rank has finished writing it, and a killed job
leaves a folder that looks like any other. So a folder is a checkpoint only if its ``checkpoint.json``
is there, unaltered, and every file it lists has the size (and, where all is read, the checksum) it lists.
No torch here: a launcher may ask.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
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

    def write(self, folder: Path, written: Mapping[str, StoredFile] | None = None) -> Manifest:
        """Flush the folder to the disk, then write what is in it; return the manifest as written.

        Call it on one rank, once every rank has written its shards. ``written`` states what the writers put
        into them; a file that it does not name is read. Raises OSError where a file is not as stated.
        """
        sync_tree(folder)
        stored = {name: _stored(folder, name, written or {}) for name in _names(folder)}
        directories = {name: directory_checksum(folder / name) for name in stored}
        known = {name: checksum for name, checksum in directories.items() if checksum}
        complete = dataclasses.replace(self, files=stored, directories=known)
        tree = dataclasses.asdict(complete)
        files.write_json(folder / MANIFEST_NAME, {**tree, CHECKSUM_KEY: _checksum(tree)})
        return complete

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return a checkpoint's manifest; it, the files' sizes and their zip directories are checked.

        Raises UserError where there is no checkpoint, IntegrityError where it is not what was written.
        """
        manifest = cls._read(folder)
        for name, checksum in manifest.directories.items():
            if directory_checksum(folder / name) != checksum:
                raise IntegrityError(
                    f"{folder / name}: not the file that was written (swapped or damaged); use another step, "
                    "or copy the file again"
                )
        return manifest

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
        for name, file in manifest.files.items():
            _check_size(folder / name, file.size)
        return manifest

    def check_contents(self, folder: Path, progress: Progress | None = None) -> None:
        """Read every file and raise IntegrityError unless it is the one that was written."""
        for name, file in self.files.items():
            _check_size(folder / name, file.size)
            found = stored_file(folder / name, progress).checksum
            if found != file.checksum:
                raise IntegrityError(
                    f"{folder / name}: checksum {found} where {file.checksum} was written (altered or "
                    "swapped); use another step, or copy the file again"
                )


def newest(checkpoints: Path) -> int | None:
    """Return the newest step with a whole checkpoint, or None. The file ``latest`` is not believed."""
    return max(complete_steps(checkpoints), default=None)


def complete_steps(checkpoints: Path) -> list[int]:
    """Return the sorted steps whose checkpoints are whole."""
    return [
        step for step in layout.steps_in(checkpoints) if _is_complete(checkpoints / layout.step_name(step))
    ]


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder to the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


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
def _schema(cls: Any) -> pydantic.TypeAdapter[Manifest]:
    return pydantic.TypeAdapter(cls)


def _parse(cls: type[Manifest], path: Path) -> Manifest:
    try:
        tree = files.read_json(path)
        stated = tree.pop(CHECKSUM_KEY, None) if isinstance(tree, dict) else None
        manifest = _schema(cls).validate_json(files.canonical_json(tree))
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
