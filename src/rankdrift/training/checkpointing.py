"""Sharded checkpoints: written under a temporary name by all ranks, described, then renamed.

A step's folder therefore exists only whole. ``checkpoint.json`` (see ``checkpoint/manifest.py``) is the last
file in it, and ``latest`` names it only afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.layout import RunLayout
from rankdrift.spec.identity import differences, digest
from rankdrift.training import resume_check
from rankdrift.training.engine import Engine, gather, on_rank_0, rank, require_none, world_size
from rankdrift.training.selection import best_of, costs
from rankdrift.zero_checkpoint.checksums import StoredFile, flush
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps, newest
from rankdrift.zero_checkpoint.rotation import Retention, remove, remove_leftovers

logger = logging.getLogger(__name__)

FP32_BYTES = 4
ADAM_BYTES = 8  # two moments
SPARE_BYTES = 256 * 2**20


class Save:
    """One save under way: written by all ranks, on its way to the disk, not yet a checkpoint.

    Training goes on while each rank flushes its files. The save becomes a checkpoint (``finish``) once all
    ranks have; until then, and if it fails, the checkpoints that were there are all there is.
    """

    def __init__(self, run: RunLayout, manifest: Manifest) -> None:
        self.manifest, self.target = manifest, run.checkpoint(manifest.step)
        self.scratch = self.target.with_name(f".{self.target.name}.tmp")
        self.files: dict[str, StoredFile] = {}
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._flush, daemon=True)

    def begin(self, engine: Engine, exclude_frozen: bool, needed: int) -> None:
        """Write the shards and start flushing them."""
        with self._failures():
            on_rank_0(lambda: _prepare(self.scratch, needed))
            self.files = engine.save(self.scratch.parent, self.scratch.name, exclude_frozen)
        self._thread.start()

    @property
    def is_flushed(self) -> bool:
        """Whether the disk has what this rank wrote, or has refused it."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for the disk, then make the files a checkpoint; every rank must call it at the same time."""
        self._thread.join()
        with self._failures():
            require_none(self._failure)
            written = {name: stored for part in gather(self.files) for name, stored in part.items()}
            on_rank_0(lambda: _publish(self.scratch, self.target, self.manifest, written))
        logger.info("saved %s", self.target)

    def _flush(self) -> None:
        try:
            for name in self.files:
                flush(self.scratch / name)
        except OSError as error:
            self._failure = f"rank {rank()}: {error}"

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if rank() == 0:
                shutil.rmtree(self.scratch, ignore_errors=True)
            message = f"{self.target}: cannot be saved ({error}); earlier checkpoints are untouched"
            raise UserError(message) from None


def save(engine: Engine, run: RunLayout, manifest: Manifest, exclude_frozen: bool, needed: int) -> Save:
    """Write the step that the manifest states; it is a checkpoint once the save that is returned is finished.

    Every rank must call it.

    Parameters
    ----------
    engine
        What is saved.
    run
        The run's folder.
    manifest
        What the checkpoint will state.
    exclude_frozen
        Leave out parameters that do not train.
    needed
        Bytes the checkpoint will take (``predicted_bytes``).

    Raises
    ------
    UserError
        On every rank, if it cannot be written. The checkpoints that were there stay.

    """
    under_way = Save(run, manifest)
    under_way.begin(engine, exclude_frozen, needed)
    return under_way


def _prepare(scratch: Path, needed: int) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    require_space(scratch.parent, needed, "the files of one checkpoint")


def _publish(scratch: Path, target: Path, manifest: Manifest, written: Mapping[str, StoredFile]) -> None:
    """Give a whole checkpoint its name; what had the name was not whole, or the run would not be here."""
    manifest.write(scratch, written)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    files.sync_folder(target.parent)
    files.write_text(target.parent / "latest", target.name + "\n")
    shutil.rmtree(old, ignore_errors=True)


def rotate(run: RunLayout, keep: Retention, value: str) -> None:
    """Remove checkpoints that need not be kept, say which of the others is the best; on rank 0, after saves.

    One that is being read is left for the next time; one that cannot be removed is warned of. ``value`` is
    the logged one that selects (``selection.logged``).
    """
    found = costs(files.read_jsonl(run.metrics), value)
    for step in keep.superfluous(complete_steps(run.checkpoints), found):
        try:
            if remove(run.checkpoint(step)):
                logger.info("removed %s", run.checkpoint(step))
        except OSError as error:
            logger.warning("%s cannot be removed (%s)", run.checkpoint(step), error)
    if best := best_of(found, complete_steps(run.checkpoints), value):
        files.write_json(run.best, best)
    else:
        run.best.unlink(missing_ok=True)


def require_resumable(run: RunLayout, identity: Mapping[str, Any]) -> None:
    """Make a run's folder ready to train in; raise UserError unless its newest checkpoint can be taken up.

    It must be of the same experiment, and its files as they were written.
    """
    require_same(run, identity)
    require_intact(run)
    if rank() == 0:
        remove_leftovers(run.checkpoints)
        resume_check.keep(run, newest(run.checkpoints) or 0)


def require_same(run: RunLayout, identity: Mapping[str, Any]) -> None:
    """Raise UserError, saying what differs, if the newest checkpoint was made by another experiment.

    The number of ranks and the ZeRO stage may differ.
    """
    step = newest(run.checkpoints)
    if step is None:
        return
    manifest = Manifest.read(run.checkpoint(step))
    if manifest.spec_digest == digest(identity):
        return
    old = files.read_json(run.identity) if run.identity.exists() else {}
    known = digest(old) == manifest.spec_digest
    what = "; ".join(differences(old, identity)) if known else f"{run.identity} does not say of which"
    raise UserError(
        f"{run.checkpoint(step)}: was saved by another experiment ({what}); resume with its settings, or "
        "train into another folder (study=NAME or output=FOLDER)"
    )


def require_intact(run: RunLayout) -> None:
    """Raise IntegrityError on every rank unless the newest checkpoint's files are as written.

    Each rank reads its share of the files.
    """
    step = newest(run.checkpoints)
    if step is None:
        return
    manifest, failure = Manifest.read(run.checkpoint(step)), None
    share = sorted(manifest.files)[rank() :: world_size()]
    try:
        replace(manifest, files={name: manifest.files[name] for name in share}).check_contents(
            run.checkpoint(step)
        )
    except (OSError, IntegrityError) as error:
        failure = str(error)
    if failures := [found for found in gather(failure) if found]:
        raise IntegrityError(f"{failures[0]}; delete {run.checkpoint(step)} to resume from the step before")


def resume(engine: Engine, run: RunLayout) -> int:
    """Take up the newest complete checkpoint, if there is one; return the step it holds, else 0.

    It may be of another ZeRO stage and another number of ranks; every rank must call it.
    """
    step = newest(run.checkpoints)
    if step is None:
        return 0
    folder = run.checkpoint(step)
    manifest = Manifest.read(folder)
    if (manifest.world_size, manifest.zero_stage) != (world_size(), engine.stage):
        logger.info(
            "resuming a checkpoint of %s, ZeRO-%d on %s, ZeRO-%d",
            _ranks(manifest.world_size),
            manifest.zero_stage,
            _ranks(world_size()),
            engine.stage,
        )
    engine.restore(folder)
    logger.info("resumed from %s", folder)
    return step


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


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
            f"{folder}: {what} take {needed / 2**30:.2f} GiB, {free / 2**30:.2f} are free; free some, "
            "save less often (training.save_every) or choose another disk (output=FOLDER)"
        )
