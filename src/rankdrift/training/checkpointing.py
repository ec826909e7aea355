"""Sharded checkpoints: written under a temporary name by all ranks, described, then renamed.

A step's folder therefore exists only whole. ``checkpoint.json`` (see ``checkpoint/record.py``) is the last
file in it, and ``latest`` names it only afterwards.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from rankdrift import records
from rankdrift.checkpoint.record import CheckpointRecord, newest
from rankdrift.checkpoint.shards import open_checkpoint
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, step_name
from rankdrift.training.engine import Engine, barrier, rank

logger = logging.getLogger(__name__)

FP32_BYTES = 4
ADAM_BYTES = 8  # two moments
SPARE_BYTES = 256 * 2**20


IDENTITY = ("world_size", "zero_stage", "method", "precision", "spec_digest", "base", "base_digest")
"""What a checkpoint must agree on before a run resumes from it."""


def save(engine: Engine, run: RunLayout, record: CheckpointRecord, exclude_frozen: bool) -> None:
    """Save the step that the record states; every rank must call it.

    Raises
    ------
    UserError
        If the disk cannot hold it. The checkpoints that were there stay.

    """
    target, temporary = run.checkpoint(record.step), f".{step_name(record.step)}.tmp"
    scratch = run.checkpoints / temporary
    if rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    barrier()
    try:
        engine.save(run.checkpoints, temporary, exclude_frozen)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where a disk is full
        raise UserError(f"{target}: cannot be saved ({error}); earlier checkpoints are untouched") from None
    barrier()
    if rank() == 0:
        record.write(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        records.sync_folder(run.checkpoints)
        records.write_text(run.checkpoints / "latest", step_name(record.step) + "\n")
    barrier()
    logger.info("saved %s", target)


def require_same(run: RunLayout, expected: CheckpointRecord) -> None:
    """Raise UserError if the newest checkpoint was made by another experiment, stage or number of ranks."""
    step = newest(run.checkpoints)
    if step is None:
        return
    record = CheckpointRecord.read(run.checkpoint(step))
    for key in IDENTITY:
        found, wanted = getattr(record, key), getattr(expected, key)
        if found != wanted:
            raise UserError(
                f"{run.checkpoint(step)}: was saved with {key}={found!r}, this run has {wanted!r}; "
                "resume with the same settings, or train into another folder (study=NAME or output=FOLDER)"
            )


def resume(engine: Engine, run: RunLayout, strict: bool) -> int:
    """Load the newest complete checkpoint, if there is one; return the step it holds, else 0.

    Without ``strict`` the checkpoint may lack parameters (the frozen base); those that train must be there.
    """
    step = newest(run.checkpoints)
    if step is None:
        return 0
    _require_all(run.checkpoint(step), engine)
    engine.load(run.checkpoints, step_name(step), strict)
    logger.info("resumed from %s", run.checkpoint(step))
    return step


def _require_all(folder: Path, engine: Engine) -> None:
    saved = open_checkpoint(folder)
    missing = sorted(set(engine.numels) - set(saved.tensors) - set(saved.aliases))
    if missing:
        raise UserError(
            f"{folder}: holds no '{missing[0]}' ({len(missing)} trained parameters are missing); delete it "
            "to resume from the one before"
        )


def predicted_bytes(trained: int, frozen: int, stage: int, weight_bytes: int) -> int:
    """Return the size of one checkpoint.

    Parameters
    ----------
    trained, frozen
        Elements that train, and elements that are saved although they do not.
    stage
        ZeRO stage; above 0 the fp32 masters are saved beside the module's weights (not again at 3).
    weight_bytes
        Bytes of one of the module's weights.

    """
    module = (trained + frozen) * weight_bytes if stage < 3 else frozen * weight_bytes
    optimizer = trained * (ADAM_BYTES + (FP32_BYTES if stage else 0))
    return module + optimizer


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError, with both figures, unless the folder's disk has the bytes and some to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{folder}: {what} need {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; free some, "
            "save less often (training.save_every) or choose another disk (output=FOLDER)"
        )
