"""Sharded checkpoints: written under a temporary name by all ranks, described, then renamed.

A step's folder therefore exists only whole. ``checkpoint.json`` (see ``checkpoint/manifest.py``) is the last
file in it, and ``latest`` names it only afterwards. Where machines share no folder (``places.py``), each has
one with the files of its ranks; the folders get their name once all disks have all files.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.layout import RunLayout
from rankdrift.spec.identity import differences, digest
from rankdrift.training import resume_check
from rankdrift.training.collectives import gather, on_rank_0, rank, require_none, world_size
from rankdrift.training.engine import Engine
from rankdrift.training.parts import Held, at_hand, has, require_some, whole_steps
from rankdrift.training.places import TOGETHER, Places
from rankdrift.training.selection import best_of, costs
from rankdrift.zero_checkpoint.checksums import StoredFile, flush
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps, joined
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

    def __init__(self, run: RunLayout, manifest: Manifest, places: Places = TOGETHER) -> None:
        self.manifest, self.target, self.places = manifest, run.checkpoint(manifest.step), places
        self.scratch = self.target.with_name(f".{self.target.name}.tmp")
        self.files: dict[str, StoredFile] = {}
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._flush, daemon=True)

    def begin(self, engine: Engine, exclude_frozen: bool, needed: int) -> None:
        """Write the shards and start flushing them."""
        with self._failures():
            share = needed * len(self.places.peers) // world_size()
            self.places.on_leaders(lambda: _prepare(self.scratch, share))
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
            if self.places.apart:
                self._publish_parts(written)
            else:
                on_rank_0(lambda: _publish(self.scratch, self.target, self.manifest, written))
        logger.info("saved %s", self.target)

    def _publish_parts(self, written: Mapping[str, StoredFile]) -> None:
        """Make each machine's files its part: named only once all of them are on the disks, described."""
        own: list[Manifest] = []
        self.places.on_leaders(lambda: own.append(self.manifest.described(self.scratch, written)))
        described = gather(own[0] if own else None)
        parts = [described[place.leader] for place in self.places.apart]
        whole = joined(parts, [place.host for place in self.places.apart], self.places.own)
        self.places.on_leaders(lambda: _keep(whole, self.scratch))
        self.places.on_leaders(lambda: _name(self.scratch, self.target))

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
            if self.places.leads:
                shutil.rmtree(self.scratch, ignore_errors=True)
            message = f"{self.target}: cannot be saved ({error}); earlier checkpoints are untouched"
            raise UserError(message) from None


def save(
    engine: Engine,
    run: RunLayout,
    manifest: Manifest,
    exclude_frozen: bool,
    needed: int,
    places: Places = TOGETHER,
) -> Save:
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
    places
        Which ranks share the run's folder.

    Raises
    ------
    UserError
        On every rank, if it cannot be written. The checkpoints that were there stay.

    """
    under_way = Save(run, manifest, places)
    under_way.begin(engine, exclude_frozen, needed)
    return under_way


def _prepare(scratch: Path, needed: int) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    _require_space(scratch.parent, needed, "the files of one checkpoint")


def _publish(scratch: Path, target: Path, manifest: Manifest, written: Mapping[str, StoredFile]) -> None:
    """Give a whole checkpoint its name; what had the name was not whole, or the run would not be here."""
    manifest.write(scratch, written)
    _name(scratch, target)


def _keep(manifest: Manifest, scratch: Path) -> None:
    manifest.keep(scratch)
    files.sync_folder(scratch)


def _name(scratch: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    files.sync_folder(target.parent)
    files.write_text(target.parent / "latest", target.name + "\n")
    shutil.rmtree(old, ignore_errors=True)


def rotate(run: RunLayout, keep: Retention, value: str, places: Places = TOGETHER) -> None:
    """Remove checkpoints that need not be kept, say which of the others is the best; after saves.

    Every rank must call it. One that is being read is left for the next time; one that cannot be removed is
    warned of. ``value`` is the logged one that selects (``selection.logged``).
    """
    if places.apart:
        whole = sorted(whole_steps(run, places))
    elif rank():
        return
    else:
        whole = complete_steps(run.checkpoints)
    found = costs(files.read_jsonl(run.metrics), value)
    superfluous = keep.superfluous(whole, found)
    if places.apart:
        superfluous = gather(superfluous)[0]  # rank 0 has what was logged
    if places.leads:
        _remove(run, superfluous)
    if rank() == 0:
        _say_best(run, best_of(found, [step for step in whole if run.checkpoint(step).exists()], value))


def _remove(run: RunLayout, steps: Sequence[int]) -> None:
    for step in steps:
        try:
            if run.checkpoint(step).exists() and remove(run.checkpoint(step)):
                logger.info("removed %s", run.checkpoint(step))
        except OSError as error:
            logger.warning("%s cannot be removed (%s)", run.checkpoint(step), error)


def _say_best(run: RunLayout, best: Mapping[str, Any] | None) -> None:
    if best:
        files.write_json(run.best, best)
    else:
        run.best.unlink(missing_ok=True)


def require_resumable(run: RunLayout, identity: Mapping[str, Any], places: Places = TOGETHER) -> int:
    """Make a run's folders ready to train in; return the newest step that is whole, 0 where there is none.

    Raises UserError on every rank unless the checkpoint can be taken up. It must be of the same experiment,
    and its files as they were written, on every machine.
    """
    require_same_everywhere(identity)
    whole = whole_steps(run, places)
    require_some(run, places, whole)
    step = max(whole, default=0)
    if step:
        require_same(run, identity, step, whole[step])
        require_intact(run, step, whole[step], places)
    if places.leads:
        remove_leftovers(run.checkpoints)
    if rank() == 0:
        resume_check.keep(run, step)
    return step


def require_same_everywhere(identity: Mapping[str, Any]) -> None:
    """Raise UserError on every rank, saying what differs, unless all machines have the same experiment."""
    digests = gather(digest(identity))
    if len(set(digests)) == 1:
        return
    every = gather((socket.gethostname(), dict(identity)))
    other = next(number for number, found in enumerate(digests) if found != digests[0])
    (first, expected), (host, found) = every[0], every[other]
    raise UserError(
        f"{host} (rank {other}) has another experiment than {first}: "
        f"{'; '.join(differences(expected, found))}; give both the same model, data and settings"
    )


def require_same(run: RunLayout, identity: Mapping[str, Any], step: int, held: Held | None = None) -> None:
    """Raise UserError, saying what differs, if a checkpoint was made by another experiment.

    The number of ranks and the ZeRO stage may differ. Every rank must call it.
    """
    stated = Manifest.read_part(run.checkpoint(step)).spec_digest if has(run.checkpoint(step), held) else None
    stated = next(found for found in gather(stated) if found)
    if stated == digest(identity):
        return
    old = files.read_json(run.identity) if run.identity.exists() else {}
    known = digest(old) == stated
    what = "; ".join(differences(old, identity)) if known else f"{run.identity} does not say of which"
    raise UserError(
        f"{run.checkpoint(step)}: was saved by another experiment ({what}); resume with its settings, or "
        "train into another folder (study=NAME or output=FOLDER)"
    )


def require_intact(run: RunLayout, step: int, held: Held | None = None, places: Places = TOGETHER) -> None:
    """Raise IntegrityError on every rank unless a checkpoint's files are as written, on every machine.

    Each rank reads its share of the files of its place.
    """
    folder, failure = run.checkpoint(step), None
    if has(folder, held):
        manifest = Manifest.read_part(folder)
        first, every = places.peers.index(rank()), len(places.peers)
        try:
            manifest.check_contents(folder, names=sorted(manifest.names_here)[first::every])
        except (OSError, IntegrityError) as error:
            failure = f"{socket.gethostname()}: {error}" if places.apart else str(error)
    if failures := [found for found in gather(failure) if found]:
        raise IntegrityError(f"{failures[0]}; delete {folder} to resume from the step before")


def resume(engine: Engine, run: RunLayout, places: Places = TOGETHER) -> int:
    """Take up the newest complete checkpoint, if there is one; return the step it holds, else 0.

    It may be of another ZeRO stage and another number of ranks; every rank must call it.
    """
    whole = whole_steps(run, places)
    if not whole:
        return 0
    step = max(whole)
    with at_hand(run.checkpoint(step), whole[step], places) as folder:
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
    logger.info("resumed from %s", run.checkpoint(step))
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


def require_space(folder: Path, needed: int, what: str, places: Places = TOGETHER) -> None:
    """Raise UserError on every rank unless every machine's disk has the bytes, and some to spare.

    Every rank must call it.
    """
    try:
        places.on_leaders(lambda: _require_space(folder, needed, what))
    except OSError as error:
        raise UserError(str(error)) from None


def _require_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError, with both figures, unless the folder's disk has the bytes and some to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{folder}: {what} take {needed / 2**30:.2f} GiB, {free / 2**30:.2f} are free; free some, "
            "save less often (training.save_every) or choose another disk (output=FOLDER)"
        )
