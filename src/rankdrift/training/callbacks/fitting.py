"""``training.micro_batch: auto``: as many rows at once as a GPU has room for, found in the first steps.

The steps are the run's own, so every stage, method and option is measured as it is, the exchange and the
update included, and nothing is done twice: a step's sums do not depend on how it is cut. The first step, in
which optimizers and kernels are set up, passes row by row and is not measured; each further one passes as
many tokens as the peaks of the last two leave room for on every rank. What is found is kept beside the run
and used again when it resumes under the same conditions.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from rankdrift import files
from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback, Step
from rankdrift.training.memory import GpuMemory, Measured, tokens_that_fit

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)

WORTHWHILE = 1.25
"""Times as many tokens as were measured last: with fewer, looking further gains nothing."""


class Fitting(Callback):
    """Raises ``trainer.budget`` from step to step until memory or a step's rows are used up."""

    def __init__(self, memory: GpuMemory | None) -> None:
        self.memory = memory
        self.searching = False
        self.limit, self.at_once = 0, 0
        self.under: dict[str, Any] = {}
        self.measured: list[Measured] = []

    def at_start(self, trainer: Trainer) -> None:
        """Take what was found before, or begin to look."""
        if self.memory is None or trainer.training.micro_batch != "auto":
            return
        self.limit = self.memory.limit()
        self.under = {**trainer.setup.conditions, "GiB of each rank": collectives.gather(self.limit // 2**30)}
        found = collectives.gather(self._found(trainer))[0]  # rank 0 has the folder
        self.searching = found is None
        trainer.budget = found or trainer.longest

    def before_forward(self, trainer: Trainer, step: int) -> None:
        """Begin to look for this step's peak."""
        if self.memory and self.searching and step > trainer.start + 1:
            at_rest = self.memory.begin()
            self.measured = self.measured or [Measured(0, at_rest)]
            self.at_once = max(map(trainer.loss.put_through, trainer.micro_batches(step)))

    def tell(self, trainer: Trainer) -> float:
        """Tell how many tokens fit on this rank."""
        if self.memory is None or not self.at_once:
            return 0.0
        if self.at_once > self.measured[-1].tokens:
            self.measured.append(Measured(self.at_once, self.memory.peak()))
        return max(trainer.longest, tokens_that_fit(self.measured, self.limit))

    def told(self, trainer: Trainer, values: np.ndarray) -> None:
        """Take what fits on all ranks; stop looking where it is hardly more than there is."""
        if not self.at_once:
            return
        everything = trainer.longest * trainer.training.global_batch // collectives.world_size()
        fits, before, self.at_once = min(int(values.min()), everything), trainer.budget, 0
        trainer.budget = fits
        self.searching = before < everything and fits > WORTHWHILE * before

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Keep what was found."""
        if self.measured and not self.searching:
            logger.info(
                "training.micro_batch=auto: up to %d tokens at once; measured on this rank: %s, of %.1f GiB",
                trainer.budget,
                ", ".join(f"{tokens} tokens {peak / 2**30:.1f} GiB" for tokens, peak in self.measured),
                self.limit / 2**30,
            )
            if trainer.journal:
                kept = {"tokens": trainer.budget, "measured": self.measured, "under": self.under}
                files.write_json(trainer.run.micro_batch, kept)
            self.measured = []

    def _found(self, trainer: Trainer) -> int | None:
        path = trainer.run.micro_batch
        if not path.exists():
            return None
        kept = files.read_json(path)
        same = files.canonical_json(kept["under"]) == files.canonical_json(self.under)
        return int(kept["tokens"]) if same else None
