"""All rows of an experiment: its tasks, read, tokenised and put one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.batches import BatchOrder, Side
from rankdrift.data.sources import load_examples
from rankdrift.data.tokens import Row, TokenizedRows, tokenize
from rankdrift.errors import UserError
from rankdrift.spec import Spec
from rankdrift.tasks import Split, Task
from rankdrift.tasks.kinds import Codec


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


def load_rows(spec: Spec, split: Split, tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
    """Return the rows of every trained task of a spec, task after task ("train" or "validation").

    Raises UserError if the data cannot be used.
    """
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


def class_ranges(spec: Spec) -> dict[str, range]:
    """Return the classes of each task among those of a classification head; empty for the LM head.

    With ``model.heads=per_task`` one task's begin where another's end; with ``shared`` all begin at 0.

    Raises
    ------
    UserError
        If tasks of different numbers of classes are to share them.

    """
    if spec.model.head == "lm":
        return {}
    ranges: dict[str, range] = {}
    for task in (registry.load("task", name) for name in spec.data.tasks):
        task.kind.require_head(task, spec.model.head)
        first = 0 if spec.model.heads == "shared" else num_classes(ranges)
        ranges[task.name] = range(first, first + len(task.choices))
    sizes = {task: len(classes) for task, classes in ranges.items()}
    if spec.model.heads == "shared" and len(set(sizes.values())) > 1:
        named = ", ".join(f"{task}: {size}" for task, size in sizes.items())
        raise UserError(
            f"model.heads=shared has the same classes for every task, whose numbers differ ({named}); use "
            "model.heads=per_task"
        )
    return ranges


def num_classes(ranges: Mapping[str, range]) -> int:
    """Return the classes of a head that tasks have these of; 0 for the LM head."""
    return max((classes.stop for classes in ranges.values()), default=0)


def num_labels(spec: Spec) -> int:
    """Return the classes of a classification head; 0 for the LM head."""
    return num_classes(class_ranges(spec))


def codec_of(spec: Spec, task: Task, tokenizer: PreTrainedTokenizerBase) -> Codec:
    """Return how a trained task's texts become tokens, in training and in scoring alike."""
    classes = class_ranges(spec).get(task.name, range(0))
    return Codec(tokenizer, spec.data.max_length, spec.model.head, classes.start)


def _task_rows(spec: Spec, name: str, split: Split, tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
    task = registry.load("task", name)
    return tokenize(load_examples(task, split, spec.data), task, codec_of(spec, task, tokenizer))
