"""All rows of an experiment: its tasks' prepared tables, one after the other, and their mixture."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.batches import Side
from rankdrift.data.mixture import Mixture
from rankdrift.data.prepare import Preparation
from rankdrift.data.token_table import TaskTables
from rankdrift.errors import UserError
from rankdrift.progress import Progress
from rankdrift.spec import Spec


@dataclass(frozen=True)
class TrainingData:
    """Rows of both splits, and the order of the training rows."""

    train: TaskTables
    validation: TaskTables
    order: Mixture
    lengths: np.ndarray
    """Tokens of every training row, shape (rows,)."""
    terms: np.ndarray
    """Terms of the loss that every training row has, shape (rows,): its target tokens, or its one label."""
    pad_id: int
    """Token that fills a row up; masked."""
    side: Side
    """Where it is put."""
    num_labels: int
    """Classes of a classification head; 0 for the LM head."""

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return what became of each task's rows, split by split: task -> split -> counts."""
        splits = {"train": self.train, "validation": self.validation}
        return {
            task: {split: asdict(rows.counts[task]) for split, rows in splits.items()}
            for task in self.train.tasks
        }


def load_training_data(spec: Spec, tokenizer: PreTrainedTokenizerBase, side: Side) -> TrainingData:
    """Return the tokenised rows of both splits."""
    train, validation = (load_rows(spec, split, tokenizer) for split in ("train", "validation"))
    order = Mixture(train.sizes, spec.training.global_batch, spec.seed, spec.data.mixture)
    terms = train.targets if spec.model.head == "lm" else np.ones(len(train), np.int32)
    pad, classes = tokenizer.pad_token_id, num_labels(spec)
    return TrainingData(train, validation, order, train.lengths, terms, pad, side, classes)


def load_rows(
    spec: Spec,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None = None,
    again: bool = False,
) -> TaskTables:
    """Return the rows of every task of a spec, task after task ("train" or "validation").

    They are prepared where they are not yet, or if they are to be ``again``; progress is told of what takes
    long.

    Raises
    ------
    UserError
        If the data cannot be used, or if one classifier is to serve several tasks.

    """
    if spec.model.head == "classifier" and len(spec.data.tasks) > 1:
        raise UserError(
            f"model.head=classifier has the classes of one task, got data.tasks={list(spec.data.tasks)}: "
            "name one task, or use model.head=lm"
        )
    preparation = Preparation(tokenizer, spec.data, spec.model.head, progress)
    return TaskTables(
        [preparation.table(registry.load("task", name), split, again) for name in spec.data.tasks]
    )


def num_labels(spec: Spec) -> int:
    """Return the classes of a classification head; 0 for the LM head."""
    return len(registry.load("task", spec.data.tasks[0]).choices) if spec.model.head == "classifier" else 0
