"""Saves checkpoints while training goes on, removes those that need not be kept, and stops when asked to."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rankdrift.errors import Preempted
from rankdrift.planning.parameters import frozen_aliases
from rankdrift.training import checkpointing, collectives, engine
from rankdrift.training.callbacks import Callback, Step
from rankdrift.training.callbacks.requests import Asked
from rankdrift.training.saves import is_save_step, retention, saves
from rankdrift.training.setup import Setup
from rankdrift.training.stop_requests import Request

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Saving(Callback):
    """The save under way, if there is one.

    Parameters
    ----------
    asked
        Whether somebody asks for a save, or for a stop.

    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.save: checkpointing.Save | None = None

    def at_start(self, trainer: Trainer) -> None:
        """Do what a killed run had no time for."""
        _rotate(trainer)
        if self.asked.request is Request.STOP:
            self._honour(trainer, trainer.start)

    def tell(self, trainer: Trainer) -> float:
        """Tell whether this rank's files are not on the disk yet."""
        return float(self.save is not None and not self.save.is_flushed)

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Finish the save once the disks of all ranks have it."""
        if not values.any():
            self._finish(trainer)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Save if it is time to or somebody asks; then stop if somebody asks for that."""
        due = is_save_step(trainer.training, step.number) or step.number == trainer.last
        if due or self.asked.request:
            with trainer.aside("save"):
                self.begin(trainer, step.number)
            trainer.exchange()  # a request may have come meanwhile
        if self.asked.request:
            self._honour(trainer, step.number)

    def at_end(self, trainer: Trainer) -> None:
        """Wait for the last save."""
        self._finish(trainer)

    def begin(self, trainer: Trainer, step: int) -> None:
        """Begin a save; training goes on while the disk takes it."""
        self._finish(trainer)
        if trainer.journal:
            trainer.journal.flush()
        setup, used = trainer.setup, step * trainer.training.global_batch
        manifest = replace(setup.manifest, step=step, data_position=used)
        size = _checkpoint_bytes(setup, trainer.engine)
        self.save = checkpointing.save(
            trainer.engine, trainer.run, manifest, setup.method.exclude_frozen, size, setup.places
        )

    def _finish(self, trainer: Trainer) -> None:
        """Make the save under way a checkpoint, if there is one, and remove what need not be kept."""
        if self.save:
            self.save.finish()
            self.save = None
            _rotate(trainer)

    def _honour(self, trainer: Trainer, step: int) -> None:
        """End a step whose state is on its way to the disk as asked; raise Preempted if that is to stop."""
        self._finish(trainer)
        if self.asked.done(trainer) is Request.STOP and step < trainer.last:
            if trainer.journal:
                trainer.journal.status("preempted", step)
                trainer.journal.close()
            collectives.barrier()  # where one rank has ended, a launcher ends the others
            logger.info("stopped after step %d, as asked", step)
            raise Preempted(f"{trainer.run.root}: after step {step}; run the same command again to go on")


def require_space(setup: Setup, under: engine.Engine, start: int) -> None:
    """Refuse to train a run whose checkpoints the disk, or one of several machines' disks, cannot hold."""
    at_once = saves(setup.spec.training, start).at_once
    needed = at_once * _checkpoint_bytes(setup, under) * len(setup.places.peers) // collectives.world_size()
    checkpointing.require_space(setup.run.root, needed, f"{at_once} checkpoints", setup.places)


def _rotate(trainer: Trainer) -> None:
    setup = trainer.setup
    checkpointing.rotate(setup.run, retention(trainer.training), trainer.training.best, setup.places)


def _checkpoint_bytes(setup: Setup, under: engine.Engine) -> int:
    aliases = frozen_aliases(under.module) if under.stage < 3 else 0
    frozen = aliases if setup.method.exclude_frozen else under.parameter_count - under.trained
    weight = 2 if setup.manifest.precision == "bf16" else 4
    # two means of every element, which every rank writes at stage 3
    kept = 8 * under.trained * (collectives.world_size() if under.stage == 3 else 1) * setup.method.allocates
    return kept + checkpointing.predicted_bytes(under.trained, frozen, under.stage, weight)
