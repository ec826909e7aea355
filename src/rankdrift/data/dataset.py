"""All rows of an experiment: its tasks' prepared tables, one after the other, and their mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.batches import Side
from rankdrift.data.mixture import Mixture
from rankdrift.data.prepare import Preparation
from rankdrift.data.token_table import TaskTables
from rankdrift.errors import UserError
from rankdrift.progress import Progress, progress_lines
from rankdrift.spec import Spec
from rankdrift.tasks import Split, Task
from rankdrift.tasks.kinds import Codec


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
    classes: Mapping[str, range]
    """Classes of each task among those of a classification head; empty for the LM head."""

    @property
    def num_labels(self) -> int:
        """Classes of a classification head; 0 for the LM head."""
        return num_classes(self.classes)

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return what became of each task's rows, split by split: task -> split -> counts."""
        splits = {"train": self.train, "validation": self.validation}
        return {
            task: {split: asdict(rows.counts[task]) for split, rows in splits.items()}
            for task in self.train.tasks
        }


def load_training_data(spec: Spec, tokenizer: PreTrainedTokenizerBase, side: Side) -> TrainingData:
    """Return the tokenised rows of both splits."""
    progress = progress_lines(partial(print, flush=True))  # of the rank that prepares while others wait
    train, validation = (load_rows(spec, split, tokenizer, progress) for split in ("train", "validation"))
    order = Mixture(train.sizes, spec.training.global_batch, spec.seed, spec.data.mixture)
    terms = train.targets if spec.model.head == "lm" else np.ones(len(train), np.int32)
    pad = tokenizer.pad_token_id
    return TrainingData(train, validation, order, train.lengths, terms, pad, side, class_ranges(spec))


def load_rows(
    spec: Spec,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None = None,
    again: bool = False,
) -> TaskTables:
    """Return the rows of every trained task of a spec, task after task.

    They are prepared where they are not yet, or if they are to be ``again``; progress is told of what takes
    long.

    Raises UserError if the data cannot be used.
    """
    if not spec.data.tasks:
        raise UserError("data.tasks is empty: name at least one task to train on")
    preparation = Preparation(tokenizer, spec.data, progress)
    tasks = [registry.load("task", name) for name in spec.data.tasks]
    return TaskTables(
        [preparation.table(task, split, codec_of(spec, task, tokenizer), again) for task in tasks]
    )


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
