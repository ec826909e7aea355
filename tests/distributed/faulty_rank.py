"""``rankdrift train`` whose rank 1 raises or hangs, with its threads alive, in the step that FAULT names.

FAULT=raise:7 or hang:7, counted from the step that this start begins with.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from rankdrift.cli.main import program
from rankdrift.training import collectives
from rankdrift.training.trainer import Trainer

KIND, _, NUMBER = os.environ["FAULT"].partition(":")
TRAIN_STEP = Trainer.train_step


def train_step(trainer: Trainer, step: int) -> Any:
    if step == trainer.start + int(NUMBER) and collectives.rank() == 1:
        if KIND == "raise":
            raise ZeroDivisionError("of the test")
        for callback in trainer.callbacks:
            callback.before_forward(trainer, step)
        stand_still()
    return TRAIN_STEP(trainer, step)


def stand_still() -> None:
    time.sleep(1000)


Trainer.train_step = train_step  # type: ignore[method-assign]
program(["train", *sys.argv[1:]])
