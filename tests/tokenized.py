"""Rows of a few examples, made one by one: what the flat columns of tables are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankdrift.data.tokens import Row, RowCounts, encode, require_rows
from rankdrift.tasks import Example, Task
from rankdrift.tasks.kinds import Codec, Encoded


@dataclass(frozen=True)
class TokenizedRows:
    """Rows, and what became of the others, by task."""

    rows: list[Row]
    counts: dict[str, RowCounts]


def tokenize(examples: Sequence[Example], task: Task, codec: Codec) -> TokenizedRows:
    """Return the rows of all examples of a task; raise UserError if none is left."""
    kept, counts = encode(examples, task, codec)
    require_rows(task, counts, codec.max_length)
    return TokenizedRows([_row(row, task.name) for row in kept], {task.name: counts})


def _row(row: Encoded, task: str) -> Row:
    carries = np.zeros(len(row.ids), np.bool_)
    for start, stop in row.carries:
        carries[start:stop] = True
    return Row(np.array(row.ids, dtype=np.int32), carries, row.label, task, row.number)
