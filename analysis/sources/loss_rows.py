"""The rows that gradients are taken on: inputs with their targets, task by task."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rankdrift import files
from rankdrift.analysis.mathematics.gradients.products import Shards
from rankdrift.errors import UserError

IGNORED = -100
"""Label of a token that is no target."""
SHARDS = 8
"""Shards of each task: what noise is estimated from, whatever is put through the model at once."""


@dataclass(frozen=True)
class Row:
    """An input with its targets."""

    task: str
    input_ids: tuple[int, ...]
    """Token ids without padding."""
    labels: tuple[int, ...]
    """As long as ``input_ids``, -100 where a token is no target; or the class alone."""

    @property
    def classifies(self) -> bool:
        """Whether its label is a class (a row of one token would have no target for an LM head)."""
        return len(self.labels) == 1

    @property
    def targets(self) -> int:
        """Terms of its loss; the first token is predicted from nothing, so it is never a target."""
        return 1 if self.classifies else sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class LossRows:
    """The rows of all tasks, for one kind of head."""

    path: Path
    """Where they were read from."""
    rows: tuple[Row, ...]
    classifies: bool
    """Whether the labels are classes rather than tokens."""

    @cached_property
    def groups(self) -> tuple[tuple[Row, ...], ...]:
        """The rows of each shard: those of a task, shuffled (always alike), dealt out to up to ``SHARDS``.

        Dealt out as they come, rows that alternate, by label say, would make shards that differ by more than
        chance does.
        """
        tasks: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            tasks[row.task].append(row)
        return tuple(
            tuple(rows[index] for index in np.random.default_rng(0).permutation(len(rows))[first::SHARDS])
            for rows in tasks.values()
            for first in range(min(SHARDS, len(rows)))
        )

    @property
    def shards(self) -> Shards:
        """What the shards are."""
        return Shards(
            tasks=tuple(rows[0].task for rows in self.groups),
            rows=tuple(map(len, self.groups)),
            targets=tuple(sum(row.targets for row in rows) for rows in self.groups),
        )


def read_rows(path: Path) -> LossRows:
    """Read a Parquet file with columns ``task``, ``input_ids`` and ``labels``.

    For an LM head ``labels`` is as long as ``input_ids``, with the token's own id where it is a target
    (predicted from the tokens before it) and -100 elsewhere. For a classification head it is a list of one,
    the class.

    Raises
    ------
    UserError
        If the file or a column is missing, a row cannot be used or has no target, or rows of both kinds are
        mixed.

    """
    table = files.read_table(path)
    if missing := {"task", "input_ids", "labels"} - set(table.columns):
        raise UserError(f"{path}: no column {', '.join(sorted(missing))}; write task, input_ids and labels")
    columns = zip(table["task"], table["input_ids"], table["labels"], strict=True)
    rows = tuple(_row(f"{path}: row {index}", *values) for index, values in enumerate(columns))
    if not rows:
        raise UserError(f"{path}: no rows to take gradients on; add some of each task")
    if len({row.classifies for row in rows}) > 1:
        raise UserError(
            f"{path}: labels are classes in some rows and tokens in others; give one kind of head"
        )
    return LossRows(path, rows, rows[0].classifies)


def _row(where: str, task: Any, input_ids: Any, labels: Any) -> Row:
    row = Row(str(task), _integers(where, "input_ids", input_ids), _integers(where, "labels", labels))
    if not row.input_ids or min(row.input_ids) < 0:
        raise UserError(f"{where}: input_ids {input_ids!r} is not a list of one or more token ids")
    if not row.classifies and len(row.labels) != len(row.input_ids):
        raise UserError(
            f"{where}: {len(row.labels)} labels, {len(row.input_ids)} tokens; give one each, or the class"
        )
    if not row.targets:
        raise UserError(f"{where}: every label is {IGNORED}, so it has no loss; leave the row out")
    return row


def _integers(where: str, column: str, value: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(item) for item in value)
    except TypeError:
        raise UserError(f"{where}: {column} {value!r} is not a list of integers") from None
