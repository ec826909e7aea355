"""The loss: a sum over targets, so that shares of a global batch add up however it is cut.

The mean is taken once, over all targets of the global batch: with the mean of each micro-batch instead,
the result would depend on the cut (huggingface/transformers issue 34191).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankdrift.data.batches import class_labels, filled, packed, padded
from rankdrift.data.dataset import TrainingData
from rankdrift.data.tokens import Head, Row
from rankdrift.models.direction import pooled_at_the_end
from rankdrift.models.packing import packed_inputs, takes_packed_rows
from rankdrift.training.collectives import to_device
from rankdrift.training.cross_entropy import cross_entropies
from rankdrift.training.engine import Engine

Predictions = tuple[Tensor, Tensor, Tensor]
"""The logits of every target, shape (targets, classes); the targets; the number of each one's row."""


class BatchLoss:
    """The loss of rows put through a model as one batch.

    Parameters
    ----------
    engine
        The model; whether it takes packed rows (``models.packing``) decides that they are laid end to end.
    data
        How rows are filled up.
    head
        ``lm`` or ``classifier``.

    """

    def __init__(self, engine: Engine, data: TrainingData, head: Head) -> None:
        self.engine, self.data, self.head = engine, data, head
        self.packs = takes_packed_rows(engine.module)

    def of_all(self, rows: list[Row]) -> Tensor:
        """Return the summed loss, nats."""
        return self._losses(rows)[0].sum()

    def of_each(self, rows: list[Row]) -> Tensor:
        """Return every row's loss, nats, shape (rows,)."""
        losses, numbers = self._losses(rows)
        return losses.new_zeros(len(rows)).index_add(0, numbers, losses)

    def of_tasks(self, rows: list[Row]) -> Tensor:
        """Return the summed loss of each of the run's tasks, nats, shape (tasks,)."""
        tasks = self.data.train.tasks
        if len(tasks) == 1:
            return self.of_all(rows).reshape(1)
        sums = self.of_each(rows)
        numbers = to_device(torch.tensor([tasks.index(row.task) for row in rows]))
        return sums.new_zeros(len(tasks)).index_add(0, numbers, sums)

    def targets(self, row: Row) -> int:
        """Return the terms of the loss a row has: its target tokens, or its one label."""
        return row.target_tokens if self.head == "lm" else 1

    def padding(self, micro_batches: list[list[Row]]) -> float:
        """Return the share of what is put through the model that holds no token."""
        tokens = sum(len(row.input_ids) for rows in micro_batches for row in rows)
        put_through = sum(self.put_through(rows) for rows in micro_batches if rows)
        return 1 - tokens / put_through if put_through else 0.0

    def put_through(self, rows: list[Row]) -> int:
        """Return the tokens that a micro-batch is put through the model as, filling included."""
        lengths = [len(row.input_ids) for row in rows]
        return sum(lengths) if self.packs else max(lengths) * len(rows)

    def _losses(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """Return every target's loss, nats, and the number of its row, both of the shape (targets,)."""
        logits, targets, numbers = self._predict(rows)
        return cross_entropies(logits, targets), numbers

    def _predict(self, rows: list[Row]) -> Predictions:
        if self.head == "classifier":
            return self._predict_classes(rows)
        return self._predict_packed(rows) if self.packs else self._predict_filled(rows)

    def _predict_packed(self, rows: list[Row]) -> Predictions:
        """Of rows laid end to end; no logits but these are made."""
        batch = packed(rows)
        inputs = {"input_ids": batch.input_ids, **packed_inputs(batch.lengths)}
        logits = self.engine.forward(inputs, logits_to_keep=batch.predicting)
        return logits[0], to_device(batch.targets), to_device(batch.rows)

    def _predict_filled(self, rows: list[Row]) -> Predictions:
        """Of rows filled up; no mask is given, so that attention is causal and nothing else."""
        batch = filled(rows, self.data.pad_id)
        logits = self.engine.forward({"input_ids": batch.input_ids}, logits_to_keep=batch.predicting)
        numbers = to_device(batch.rows)
        return logits[numbers, to_device(batch.columns)], to_device(batch.targets), numbers

    def _predict_classes(self, rows: list[Row]) -> Predictions:
        batch: dict[str, Any] = padded([row.input_ids for row in rows], self.data.pad_id, self.data.side)
        with pooled_at_the_end(self.engine.deepspeed.module.config):
            logits = self._of_own_classes(self.engine.forward(batch), rows)
        return logits, to_device(class_labels(rows)), torch.arange(len(rows), device=logits.device)

    def _of_own_classes(self, logits: Tensor, rows: list[Row]) -> Tensor:
        """Return the logits of a classification head, each row's of its own task's classes alone."""
        classes = torch.arange(logits.shape[1], device=logits.device)
        ranges = torch.tensor(
            [(own.start, own.stop) for own in (self.data.classes[row.task] for row in rows)]
        )
        first, stop = to_device(ranges).T[:, :, None]
        return logits.masked_fill((classes < first) | (classes >= stop), -torch.inf)
