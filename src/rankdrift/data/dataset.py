"""All rows of an experiment: its tasks, read, tokenised and put one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.batches import BatchOrder, Side
from rankdrift.data.sources import load_examples
from rankdrift.data.tokens import Row, TokenizedRows, tokenize
from rankdrift.errors import UserError
from rankdrift.spec import Spec


@dataclass(frozen=True)
class TrainingData:
    """Rows of both splits, and the order of the training rows."""

    train: TokenizedRows
    validation: TokenizedRows
    order: BatchOrder
    lengths: np.ndarray
    """Tokens of every training row, shape (rows,)."""
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
            for task in self.train.counts
        }


def load_training_data(spec: Spec, tokenizer: PreTrainedTokenizerBase, side: Side) -> TrainingData:
    """Return the tokenised rows of both splits."""
    train, validation = (load_rows(spec, split, tokenizer) for split in ("train", "validation"))
    order = BatchOrder(len(train.rows), spec.training.global_batch, spec.seed)
    lengths = np.array([len(row.input_ids) for row in train.rows])
    return TrainingData(train, validation, order, lengths, tokenizer.pad_token_id, side, num_labels(spec))


def load_rows(spec: Spec, split: str, tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
    """Return the rows of every task of a spec, task after task ("train" or "validation").

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
    parts = [_task_rows(spec, name, split, tokenizer) for name in spec.data.tasks]
    return TokenizedRows(
        rows=[row for part in parts for row in part.rows],
        counts={task: counts for part in parts for task, counts in part.counts.items()},
    )


def rows_digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of what is trained on: tokens, which of them carry loss, labels."""
    digest = hashlib.sha256()
    for row in rows:
        head = f"{row.task} {len(row.input_ids)} {row.prompt_length} {row.label};"
        digest.update(head.encode() + row.input_ids.tobytes())
    return digest.hexdigest()


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each task, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return found


def num_labels(spec: Spec) -> int:
    """Return the classes of a classification head; 0 for the LM head."""
    return len(registry.load("task", spec.data.tasks[0]).choices) if spec.model.head == "classifier" else 0


def _task_rows(spec: Spec, name: str, split: str, tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
    task = registry.load("task", name)
    examples = load_examples(task, split, spec.data)
    return tokenize(examples, task, tokenizer, spec.data.max_length, spec.model.head)
