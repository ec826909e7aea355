"""Whether the rows of an experiment can be trained on: tokens of the model, labels in range, targets."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.dataset import TrainingData, load_training_data
from rankdrift.data.token_table import TokenTable
from rankdrift.errors import UserError
from rankdrift.models.base import config_of, load_tokenizer, resolve
from rankdrift.models.direction import padding_side
from rankdrift.spec import Spec
from rankdrift.tasks import Task

READ_BACK = 64
"""Rows of a table whose target is turned into text again."""


def check_data(spec: Spec) -> str:
    """Return how much there is; raise UserError for the first row that cannot be used, naming it."""
    base = resolve(spec.model.name, spec.model.revision)
    config = config_of(base)
    tokenizer = load_tokenizer(base)
    data = load_training_data(spec, tokenizer, padding_side(config))
    vocabulary = int(config.get_text_config().vocab_size)
    tasks = {task.name: task for task in (registry.load("task", name) for name in spec.data.tasks)}
    for split, rows in (("train", data.train), ("validation", data.validation)):
        for table in rows.tables:
            place = f"task '{table.task}', {split}"
            _require_tokens(table, vocabulary, spec.data.max_length, place)
            _require_labels(table, tasks[table.task], data, place)
            if spec.model.head == "lm":
                _require_targets(table, tasks[table.task], tokenizer, place)
    of_tasks = ", ".join(f"{table.task} {len(table):,}" for table in data.train.tables)
    return (
        f"{len(data.train):,} training rows ({of_tasks}), {len(data.validation):,} validation rows, "
        f"{int(data.lengths.max())} tokens at most, of {vocabulary:,}"
    )


def _require_tokens(table: TokenTable, vocabulary: int, max_length: int, place: str) -> None:
    outside = (table.input_ids < 0) | (table.input_ids >= vocabulary)
    if outside.any():
        position = int(np.argmax(outside))
        row = int(np.searchsorted(table.offsets, position, side="right")) - 1
        raise UserError(
            f"{place}: row {row} has the token {int(table.input_ids[position])}, the model's are 0 to "
            f"{vocabulary - 1}; use the model's own tokenizer"
        )
    if len(table) and table.lengths.max() > max_length:
        row = int(np.argmax(table.lengths))
        raise UserError(
            f"{place}: row {row} has {int(table.lengths[row])} tokens, data.max_length={max_length}"
        )


def _require_labels(table: TokenTable, task: Task, data: TrainingData, place: str) -> None:
    if not task.choices:
        return
    allowed = data.classes.get(task.name, range(len(task.choices)))
    outside = (table.labels < allowed.start) | (table.labels >= allowed.stop)
    if outside.any():
        row = int(np.argmax(outside))
        raise UserError(
            f"{place}: row {row} has the label {int(table.labels[row]) - allowed.start}, the task has "
            f"{len(task.choices)} choices; correct or remove the row"
        )


def _require_targets(table: TokenTable, task: Task, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Every row has a target; the first ones of a task with choices have that of their label."""
    if (table.targets < 1).any():
        row = int(np.argmax(table.targets < 1))
        raise UserError(f"{place}: row {row} has no target to learn; raise data.max_length, or remove it")
    if task.kind.name != "classification":
        return
    for number, learnt in enumerate(table[:READ_BACK]):
        assert learnt.label is not None
        said = str(tokenizer.decode(learnt.input_ids[learnt.carries_loss], skip_special_tokens=True))
        choice = task.choices[learnt.label]
        if _plain(said) != _plain(choice):
            raise UserError(
                f"{place}: row {number} has label {learnt.label}, {choice!r}, and learns to say {said!r}: "
                "look at how the task's kind encodes it"
            )


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
