"""The file that says a sharded checkpoint is whole: ``checkpoint.json``, written last.

DeepSpeed names a checkpoint in ``latest`` before every rank has finished writing it, and a killed job
leaves a folder that looks like any other. So a folder is a checkpoint only if its ``checkpoint.json``
is there and every file it lists still has the size it lists. No torch here: a launcher may ask.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankdrift import layout, records
from rankdrift.errors import UserError

RECORD_NAME = "checkpoint.json"


@dataclass(frozen=True)
class CheckpointRecord:
    """What one sharded checkpoint holds, and under which settings it was trained."""

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
    """SHA-256 of the settings that can change a weight."""
    base: str
    """Folder of the base model."""
    base_digest: str
    """Digest of the base model's weights."""
    data_position: int
    """Rows of training data consumed."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of every file of the checkpoint, by its name relative to the folder."""

    def write(self, folder: Path) -> CheckpointRecord:
        """Flush the folder's files to the disk, then write their sizes; return the record as written.

        Call it on one rank, once every rank has written its shards.
        """
        sync_tree(folder)
        complete = dataclasses.replace(self, files=_sizes(folder))
        records.write_json(folder / RECORD_NAME, dataclasses.asdict(complete))
        return complete

    @classmethod
    def read(cls, folder: Path) -> CheckpointRecord:
        """Return a checkpoint's record, or raise UserError where the checkpoint is not whole."""
        path = folder / RECORD_NAME
        if not path.exists():
            raise UserError(
                f"{folder}: not a complete checkpoint ({RECORD_NAME} is missing); use another step"
            )
        record = _parse(cls, path, records.read_json(path))
        for name, size in record.files.items():
            _check_file(folder / name, size)
        return record


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
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_complete(folder: Path) -> bool:
    try:
        CheckpointRecord.read(folder)
    except UserError:
        return False
    return True


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD_NAME)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _parse(cls: type[CheckpointRecord], path: Path, tree: Any) -> CheckpointRecord:
    expected = {entry.name for entry in dataclasses.fields(cls)}
    if not isinstance(tree, dict) or set(tree) != expected or not isinstance(tree["files"], dict):
        got = ", ".join(sorted(tree)) if isinstance(tree, dict) else type(tree).__name__
        raise UserError(
            f"{path}: not a record of rankdrift's (it has: {got}; expected: {', '.join(sorted(expected))})"
        )
    return cls(**tree)


def _check_file(path: Path, size: int) -> None:
    if not path.exists():
        raise UserError(f"{path}: missing from the checkpoint; use another step or copy the file again")
    found = path.stat().st_size
    if found != size:
        raise UserError(
            f"{path}: {found} bytes where {size} were written (truncated or overwritten); use another step"
        )
