"""The training loop, the same for every method: the order of events of a run and of a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rankdrift.data.batches import own_micro_batches, rank_batches_apart
from rankdrift.data.tokens import Row
from rankdrift.training import collectives, engine
from rankdrift.training.active_phases import ActivePhases
from rankdrift.training.callbacks import Callback, Step, is_due
from rankdrift.training.journal import Journal
from rankdrift.training.loss import BatchLoss
from rankdrift.training.probes.conflict import compares_tasks
from rankdrift.training.schedule import learning_rate
from rankdrift.training.setup import Setup
from rankdrift.training.step_clock import StepClock

logger = logging.getLogger(__name__)


class Trainer:
    """One run on one engine.

    Parameters
    ----------
    setup
        The run, its data and its method.
    under
        The engine that holds the model.
    callbacks
        What happens around the steps, in this order.
    start
        The step that is done already.
    journal
        What rank 0 writes into; None on other ranks.
    phases
        Which parameters train at which step; None is all of them at every step.

    """

    def __init__(
        self,
        setup: Setup,
        under: engine.Engine,
        callbacks: Sequence[Callback] = (),
        start: int = 0,
        journal: Journal | None = None,
        phases: ActivePhases | None = None,
    ) -> None:
        self.setup, self.engine, self.callbacks, self.start = setup, under, callbacks, start
        self.run, self.data, self.training = setup.run, setup.data, setup.spec.training
        self.last = self.training.steps
        """The last step, which early stopping may bring forward."""
        self.between: dict[str, float] = {}
        self.phase: int | None = None
        """The phase that is entered: the first, where there is no schedule; None before any step."""
        self.journal, self.phases = journal, phases
        self.loss = BatchLoss(under, setup.data, setup.spec.model.head)
        self.longest = int(setup.data.lengths.max())
        self.budget = self.training.micro_batch_tokens or setup.plan.micro_batch * self.longest

    @property
    def rows_at_once(self) -> int:
        """The longest rows that keep to the budget of tokens."""
        return self.budget // self.longest

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Count the block's seconds to what happens between steps; the next line of the log tells them."""
        began = time.perf_counter()
        yield
        self.between[f"seconds_{what}"] = time.perf_counter() - began

    def fit(self) -> None:
        """Train to the last step; a callback may end it before, by an exception on every rank."""
        for callback in self.callbacks:
            callback.at_start(self)
        if self.start:
            self._enter_phase(self.start)  # so that what begins to train with the next step has rested
        step = self.start
        while step < self.last:
            step += 1
            done = self.train_step(step)
            for callback in self.callbacks:
                callback.after_step(self, done)
        for callback in reversed(self.callbacks):
            callback.at_end(self)

    def train_step(self, step: int) -> Step:
        """Forward and backward over the global batch, update, exchange."""
        # dropout depends on the step and the rank alone, so that a resumed run draws the same
        torch.manual_seed(_mixed_seed(self.setup.spec.seed, step, collectives.rank()))
        phase = self._enter_phase(step)
        for callback in self.callbacks:
            callback.before_forward(self, step)
        began = time.perf_counter()
        self.engine.train()
        clock = StepClock()
        with clock.part("data"):
            apart = compares_tasks(self) and is_due(step, self.training.probe_every, self.training.steps)
            micro_batches = self.micro_batches_of_tasks(step) if apart else self.micro_batches(step)
            targets = self.targets(step)
        loss_sums = self._backpropagate(micro_batches, targets, clock)
        aside = sum(callback.before_update(self, step) for callback in self.callbacks)
        rate = learning_rate(self.training, step)
        with clock.part("update"):
            norm = self.engine.step(rate)
        with clock.part("exchange"):  # the one place of a step that waits for the device
            of_ranks = self.exchange(torch.cat([loss_sums, norm]))
        of_tasks = of_ranks[:, :-1].sum(axis=0)
        seconds = time.perf_counter() - began - aside
        values = {"loss": float(of_tasks.sum()) / targets, "learning_rate": rate, **phase}
        values["gradient_norm"] = float(of_ranks[0, -1])
        tokens = int(self.data.lengths[self.data.order.rows(step - 1)].sum())
        speed = {"tokens_per_second": tokens / seconds, "padding": self.loss.padding(micro_batches)}
        speed |= {"seconds": seconds, **clock.seconds()}
        return Step(step, values, speed, of_tasks)

    def _enter_phase(self, step: int) -> dict[str, float]:
        """Let those parameters train that do at a step; return what the log says of it."""
        if self.phases is None:
            return {}
        phase = self.phases.at(step)
        if phase.number != self.phase:
            self.engine.enter(phase.number, self.setup.spec.method.restart)
            self.phase = phase.number
            if self.phases.scheduled:
                logger.info("step %d: phase %d, '%s' trains", step, phase.number, phase.spec.name)
        return {"phase": phase.number} if self.phases.scheduled else {}

    def _backpropagate(self, micro_batches: list[list[Row]], targets: int, clock: StepClock) -> Tensor:
        """Forward and backward over this rank's rows; return the sum of each task's loss, on the device."""
        loss_sums = torch.zeros(len(self.data.train.tasks), dtype=torch.float64, device=collectives.device())
        self.engine.share_penalty(len(micro_batches))
        for number, micro_batch in enumerate(micro_batches):
            for callback in self.callbacks:
                callback.before_micro_batch(self, micro_batch)
            with clock.part("forward"):
                # every rank passes as many, as ZeRO needs: one that has no rows passes one for nothing
                parts = self.loss.of_tasks(micro_batch or [self.data.train[0]])
                parts = parts if micro_batch else parts * 0
            with clock.part("backward"):
                self.engine.backward(parts.sum() / targets, last=number == len(micro_batches) - 1)
            loss_sums += parts.detach()  # read once, at the end
        return loss_sums

    def micro_batches(self, step: int) -> list[list[Row]]:
        """Return this rank's micro-batches of a step."""
        window, own = self.data.order.rows(step - 1), (collectives.rank(), collectives.world_size())
        parts = own_micro_batches(window, self.data.lengths, *own, self.budget, self.loss.packs)
        return [[self.data.train[index] for index in part] for part in parts]

    def micro_batches_of_tasks(self, step: int) -> list[list[Row]]:
        """Return this rank's micro-batches of a step with rows of one task each; some may have none."""
        window, lengths = self.data.order.rows(step - 1), self.data.lengths
        own, labels = (collectives.rank(), collectives.world_size()), self.data.train.tasks_of(window)
        parts = rank_batches_apart(window, labels, lengths, *own, self.budget, self.loss.packs)
        return [[self.data.train[index] for index in part] for part in parts]

    def targets(self, step: int) -> int:
        """Return the terms of the loss of a step, over all ranks."""
        return int(self.data.terms[self.data.order.rows(step - 1)].sum())

    def exchange(self, own: Tensor | None = None) -> np.ndarray:
        """Return the ranks' vectors, shape (ranks, length); what callbacks have to tell travels with them.

        All ranks give vectors of the same length, fp64, on their devices, or none.
        """
        told = torch.tensor([callback.tell(self) for callback in self.callbacks], dtype=torch.float64)
        given = collectives.to_device(told) if own is None else torch.cat([own, collectives.to_device(told)])
        of_ranks = collectives.gather_vectors(given).numpy()
        length = 0 if own is None else len(own)
        for callback, values in zip(self.callbacks, of_ranks[:, length:].T, strict=True):
            callback.told(self, values)
        return of_ranks[:, :length]


def _mixed_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
