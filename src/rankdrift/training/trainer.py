"""The training loop, the same for every method: the order of events of a run and of a step."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

from rankdrift import files, registry
from rankdrift.data.batches import collate, rank_micro_batches, target_positions
from rankdrift.data.dataset import by_task, num_labels
from rankdrift.data.tokens import Row
from rankdrift.errors import IntegrityError, Preempted, UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import load_model, stored_dtype
from rankdrift.spec import Spec, TrainingSpec
from rankdrift.training import checkpointing, engine, resume_check
from rankdrift.training.journal import Journal, log_to
from rankdrift.training.loss import target_loss_sum
from rankdrift.training.probes import Probe
from rankdrift.training.schedule import learning_rate
from rankdrift.training.setup import Setup, describe, set_up
from rankdrift.training.stop_requests import Request, Requests, forget
from rankdrift.zero_checkpoint.manifest import newest
from rankdrift.zero_checkpoint.rotation import Retention, remove_leftovers

logger = logging.getLogger(__name__)


def train(spec: Spec, config_path: Path, requests: Requests | None = None) -> RunLayout:
    """Train one run to its last step, from its newest checkpoint if it has one.

    Every rank of a process group (``engine.process_group``) must call it. It raises Preempted once it has
    stopped because it was asked to: by a signal, if it is given the requests that come so, or by a file.
    """
    run = StudyLayout(spec.study_root).run(spec.run_name)
    with engine.alone_in(run.root):
        log_to(run.log if engine.rank() == 0 else None)
        setup = set_up(spec, run, config_path)
        checkpointing.require_same(run, setup.identity)
        checkpointing.require_intact(run)
        if engine.rank() == 0:
            remove_leftovers(run.checkpoints)
            resume_check.keep(run, newest(run.checkpoints) or 0)
        torch.manual_seed(spec.seed)
        model = load_model(setup.base, spec.model, num_labels(spec), _loaded_dtype(setup))
        model = setup.method.prepare(model, spec.method, setup.base)
        describe(setup, model)
        under = engine.Engine(model, spec.training, setup.config)
        Trainer(setup, under, requests or Requests()).fit()
    return run


def _loaded_dtype(setup: Setup) -> torch.dtype:
    """Return the dtype to load the base in: fp32, from which the engine casts.

    Where ranks take their parts out of the mapped file, as it is stored: of a base in bf16 an fp32 copy would
    be twice as large, on every rank. A new head is drawn in fp32.
    """
    as_stored = engine.divides(setup.config) and setup.spec.model.head == "lm"
    return stored_dtype(setup.base) if as_stored else torch.float32


class Trainer:
    """One run on one engine.

    Parameters
    ----------
    setup
        The run, its data and its method.
    under
        The engine that holds the model.
    requests
        What this rank is asked by signals.

    """

    def __init__(self, setup: Setup, under: engine.Engine, requests: Requests) -> None:
        self.setup, self.engine, self.requests = setup, under, requests
        self.asked = Request.NONE
        self.spec, self.run, self.data = setup.spec, setup.run, setup.data
        self.save: checkpointing.Save | None = None
        self.probes: list[Probe] = [registry.load("probe", name) for name in registry.names("probe")]

    def fit(self) -> None:
        """Train from the newest checkpoint to the last step, or until asked to stop."""
        training = self.spec.training
        start = checkpointing.resume(self.engine, self.run)
        self._require_space(start)
        self.journal = Journal(self.run, training.steps, start) if engine.rank() == 0 else None
        self._rotate()  # what a killed run had no time for
        self.expected = self._expected()
        self.requests.at_step_ends = True
        if start == 0:
            self._evaluate(0)
        if self.asked is Request.STOP:
            self._honour(start)
        for step in range(start + 1, training.steps + 1):
            self._train_step(step)
            if self._is_due(step, training.eval_every or training.save_every):
                self._evaluate(step)
            if self._is_save_step(step) or self.asked:
                self._save(step)
                self._together(0.0)  # a request may have come meanwhile
            if self.asked:
                self._honour(step)
        self._finish_save()
        if self.journal:
            trained = sum(self.engine.numels.values())
            total = _numel(self.engine.module)
            self.journal.close()
            self.journal.status(
                "finished",
                training.steps,
                trainable_parameters=trained,
                parameters=total,
                training_seconds=_training_seconds(self.run),
            )

    def _honour(self, step: int) -> None:
        """End a step whose state is on its way to the disk as asked; raise Preempted if that is to stop."""
        self._finish_save()
        asked, self.asked = self.asked, Request.NONE
        if self.journal:
            forget(self.run, asked)
        if asked is Request.STOP and step < self.spec.training.steps:
            if self.journal:
                self.journal.status("preempted", step)
                self.journal.close()
            engine.barrier()  # where one rank has ended, a launcher ends the others
            logger.info("stopped after step %d, as asked", step)
            raise Preempted(f"{self.run.root}: after step {step}; run the same command again to go on")

    def _train_step(self, step: int) -> None:
        """Order of events: forward and backward over the window, probes, update, log."""
        began = time.perf_counter()
        # dropout depends on the step and the rank alone, so that a resumed run draws the same
        torch.manual_seed(_mixed_seed(self.spec.seed, step, engine.rank()))
        self.engine.deepspeed.train()
        window = self.data.order.rows(step - 1)
        targets = sum(self._targets(self.data.train.rows[index]) for index in window)
        micro_batches = self._micro_batches(window)
        noise = self._rounding_noise(micro_batches, targets) if self._is_expected(step) else 0.0
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device())  # read once, at the end
        for number, micro_batch in enumerate(micro_batches):
            part = self._loss_sum(micro_batch)
            self.engine.backward(part / targets)
            loss_sum += part.detach()
            if number < len(micro_batches) - 1:
                self.engine.end_micro_batch()
        probing = self._probe(step)
        rate = learning_rate(self.spec.training, step)
        norm = self.engine.step(rate)
        tokens = int(self.data.lengths[window].sum())
        total, memory, unflushed = self._together(float(loss_sum))
        seconds = time.perf_counter() - began - probing
        if not unflushed:
            self._finish_save()
        values = {"loss": total / targets, "learning_rate": rate, "gradient_norm": norm}
        self._check_finite(step, values)
        self._check_replay(step, values, noise)
        speed = {"tokens_per_second": tokens / seconds, "memory_gib": memory, "seconds": seconds}
        speed |= {"probe_seconds": probing} if probing else {}
        self._log(step, values, speed)

    def _micro_batches(self, window: np.ndarray) -> list[list[Row]]:
        """Return this rank's micro-batches of a window of row indices."""
        lengths, ranks = self.data.lengths, engine.world_size()
        parts = rank_micro_batches(window, lengths, engine.rank(), ranks, self.setup.plan.micro_batch)
        return [[self.data.train.rows[index] for index in part] for part in parts]

    def _loss_sum(self, rows: list[Row]) -> torch.Tensor:
        """Return the summed loss of some rows; logits are made only where a target can follow."""
        batch = collate(rows, self.data.pad_id, self.spec.model.head, self.data.side)
        labels = batch.pop("labels")
        return target_loss_sum(self.engine.forward(batch, **self._kept_logits(labels)), labels)

    def _kept_logits(self, labels: torch.Tensor) -> dict[str, int]:
        return {"logits_to_keep": target_positions(labels)} if self.spec.model.head == "lm" else {}

    def _targets(self, row: Row) -> int:
        """Return the terms of the loss a row has: its target tokens, or its one label."""
        return row.target_tokens if self.spec.model.head == "lm" else 1

    def _probe(self, step: int) -> float:
        """Measure the gradients if it is time to; return the seconds it took, which are not the step's."""
        if not self._is_due(step, self.spec.training.probe_every):
            return 0.0
        engine.wait_for_device()  # or the backward pass's work would count as the probe's
        began = time.perf_counter()
        for probe in self.probes:
            rows = probe.measure(self.engine)
            if self.journal:
                self.journal.probe(probe.name, step, rows)
        return time.perf_counter() - began

    def _together(self, loss_sum: float) -> tuple[float, float, int]:
        """Return the sum of losses, the largest memory and how many ranks' saves are not on the disk yet.

        One exchange, in which the ranks also agree on what they are asked.
        """
        waiting = self.save is not None and not self.save.is_flushed
        asked = self.requests.take(self.run if engine.rank() == 0 else None)
        own = torch.tensor([loss_sum, _memory_gib(), waiting, asked], dtype=torch.float64)
        losses, memory, unflushed, requests = engine.gather_vectors(own).unbind(dim=1)
        self.asked = Request(max(self.asked, int(requests.max())))
        return float(losses.sum()), float(memory.max()), int(unflushed.sum())

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{self.run.root}: {key} is {value} at step {step}: training diverged; lower "
                    "training.learning_rate or training.clip, or use precision=fp32"
                )

    def _expected(self) -> resume_check.Expected | None:
        """Return what the first step after an interruption is compared with, on every rank the same."""
        mine = None
        if engine.rank() == 0:
            mine = resume_check.expected(self.run, self.setup.conditions, self.spec.method.is_random)
        expected: resume_check.Expected | None = engine.gather(mine)[0]
        return expected

    def _is_expected(self, step: int) -> bool:
        return self.expected is not None and step == self.expected.step

    def _rounding_noise(self, micro_batches: list[list[Row]], targets: int) -> float:
        """Return how far the loss of a step may be off by rounding; without dropout, whose masks are alike.

        Every rank passes as many batches as the others, as ZeRO-3 needs.
        """
        if not self.expected or self.expected.exact:
            return 0.0
        self.engine.deepspeed.eval()
        with torch.no_grad():
            together = torch.cat([self._row_losses(rows) for rows in micro_batches])
            alone = torch.cat([self._row_losses([row]) for rows in micro_batches for row in rows])
        self.engine.deepspeed.train()
        own = resume_check.rounding_noise(together, alone)
        return float(engine.sum_over_ranks(torch.tensor(own))) / targets

    def _row_losses(self, rows: list[Row]) -> torch.Tensor:
        """Return the loss of each of some rows, passed as one batch, shape (rows,)."""
        batch = collate(rows, self.data.pad_id, self.spec.model.head, self.data.side)
        labels = batch.pop("labels")
        logits = self.engine.forward(batch, **self._kept_logits(labels))
        return torch.stack([target_loss_sum(logits[n : n + 1], labels[n : n + 1]) for n in range(len(rows))])

    def _check_replay(self, step: int, values: dict[str, float], noise: float) -> None:
        """Stop where the first step after an interruption is not the one that was logged before it."""
        if not self.expected or not self._is_expected(step):
            return
        if difference := self.expected.difference(values, noise):
            raise IntegrityError(
                f"{self.run.root}: step {step} does not repeat: {difference}; the data, the code, the "
                f"libraries or the machine have changed. To go on all the same, delete {self.run.replay}"
            )
        logger.info("step %d is as it was before the interruption", step)
        self.expected = None
        if self.journal:
            resume_check.forget(self.run)

    def _log(self, step: int, values: dict[str, float], speed: dict[str, float]) -> None:
        if not self.journal:
            return
        self.journal.progress(step, values["loss"])
        if self._is_due(step, self.spec.training.log_every):
            self.journal.metrics(step, "train", {**values, **speed})
            self.journal.status("training", step)

    def _evaluate(self, step: int) -> None:
        """Log the validation loss of every task, and their mean, which decides what the best model is."""
        losses = {
            task: self._validation_loss(rows) for task, rows in by_task(self.data.validation.rows).items()
        }
        self._together(0.0)  # a request may have come meanwhile
        if self.journal:
            for task, loss in losses.items():
                self.journal.metrics(step, f"validation/{task}", {"loss": loss})
            self.journal.metrics(step, "validation", {"loss": sum(losses.values()) / len(losses)})

    def _validation_loss(self, rows: list[Row]) -> float:
        """Return a task's mean loss; every rank passes the same number of batches, as ZeRO-3 needs."""
        self.engine.deepspeed.eval()
        rows = rows[: self.spec.training.eval_rows]
        world = engine.world_size()
        share = -(-len(rows) // (world * self.setup.plan.micro_batch)) * self.setup.plan.micro_batch
        mine = rows[engine.rank() * share : (engine.rank() + 1) * share]
        loss_sum = 0.0
        with torch.no_grad():
            for first in range(0, share, self.setup.plan.micro_batch):
                batch = mine[first : first + self.setup.plan.micro_batch]
                # a rank that has no rows left passes the first one again and leaves it out of the sum
                loss = float(self._loss_sum(batch or rows[:1]))
                loss_sum += loss if batch else 0.0
        total = engine.sum_over_ranks(torch.tensor(loss_sum, dtype=torch.float64))
        return float(total) / sum(self._targets(row) for row in rows)

    def _save(self, step: int) -> None:
        """Begin a save; training goes on while the disk takes it."""
        self._finish_save()
        if self.journal:
            self.journal.flush()
        used = step * self.spec.training.global_batch
        manifest = replace(self.setup.manifest, step=step, data_position=used)
        exclude_frozen, size = self.setup.method.exclude_frozen, self._checkpoint_bytes()
        self.save = checkpointing.save(self.engine, self.run, manifest, exclude_frozen, size)

    def _finish_save(self) -> None:
        """Make the save under way a checkpoint, if there is one, and remove what need not be kept."""
        if self.save:
            self.save.finish()
            self.save = None
            self._rotate()

    def _rotate(self) -> None:
        if self.journal:
            checkpointing.rotate(self.run, _retention(self.spec.training))

    def _is_save_step(self, step: int) -> bool:
        return self._is_due(step, self.spec.training.save_every) or step in self.spec.training.save_steps

    def _is_due(self, step: int, every: int | None) -> bool:
        """Say whether something done every so many steps (None: at the end; 0: never) is due."""
        if every == 0:
            return False
        return step == self.spec.training.steps or (every is not None and step % every == 0)

    def _checkpoint_bytes(self) -> int:
        trained = sum(self.engine.numels.values())
        frozen = 0 if self.setup.method.exclude_frozen else _numel(self.engine.module) - trained
        weight = 2 if self.setup.manifest.precision == "bf16" else 4
        return checkpointing.predicted_bytes(trained, frozen, self.engine.stage, weight)

    def _require_space(self, start: int) -> None:
        """Refuse to start a run whose checkpoints the disk cannot hold."""
        training = self.spec.training
        later = [s for s in range(start + 1, training.steps + 1) if self._is_save_step(s)]
        gone = _retention(training).superfluous(later, losses={})
        # a checkpoint is removed once the next one is there; which are the best is not known yet
        saves = min(len(later), len(later) - len(gone) + 1 + (training.keep_best or 0))
        needed = saves * self._checkpoint_bytes()
        checkpointing.require_space(self.run.root, needed, f"{saves} checkpoints")


def _retention(training: TrainingSpec) -> Retention:
    return Retention(training.keep_last, training.keep_every, training.keep_best, training.save_steps)


def _training_seconds(run: RunLayout) -> float:
    """Return the wall time of all logged steps, those before a resume included; without saves and scores."""
    return float(sum(row.get("seconds", 0.0) for row in files.read_jsonl(run.metrics)))


def _numel(module: torch.nn.Module) -> int:
    return sum(getattr(param, "ds_numel", param.numel()) for param in module.parameters())


def _mixed_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def _memory_gib() -> float:
    """Return this rank's memory: the GPU's peak, or the process's resident set on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
