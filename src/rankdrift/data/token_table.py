"""Rows of tokens as flat columns, one file each, which ranks map into memory and do not read.

Of 400,000 rows a rank holds one array of lengths; tokens come from the disk where a batch asks for them, and
ranks of one machine share the pages. Writing goes batch by batch, so that a table may be larger than memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from rankdrift import files
from rankdrift.data.tokens import Row, RowCounts
from rankdrift.errors import IntegrityError
from rankdrift.tasks.kinds import Encoded

COLUMNS: dict[str, str] = {
    "input_ids": "<i4",
    "carries_loss": "|b1",
    "offsets": "<i8",
    "labels": "<i4",
    "indices": "<i8",
    "targets": "<i4",
}
"""Column -> its type on the disk: NumPy's, little-endian whatever the machine."""
TRAINED_ON = ("input_ids", "carries_loss", "offsets", "labels")
"""What a weight can depend on."""
NO_LABEL = -1
META = "meta.json"


class Rows(Sequence[Row]):
    """A sequence of rows that are made when they are asked for."""

    @abstractmethod
    def _row(self, number: int) -> Row:
        """Return the row of a number that is in range."""

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self._row(number) for number in range(*at.indices(len(self)))]
        return self._row(range(len(self))[at])  # negative ones, and IndexError


@dataclass(frozen=True, eq=False)
class TokenTable(Rows):
    """The rows of one task."""

    task: str
    input_ids: np.ndarray
    """Shape (tokens,), int32: all rows end to end."""
    carries_loss: np.ndarray
    """Shape (tokens,), bool: whether the LM head learns to predict the token."""
    offsets: np.ndarray
    """Shape (rows + 1,), int64: where each row begins, and the end."""
    labels: np.ndarray
    """Shape (rows,), int32: class index, of a classification head among all its classes; -1 for none."""
    indices: np.ndarray
    """Shape (rows,), int64: position of its example among the task's examples."""
    targets: np.ndarray
    """Shape (rows,), int32: tokens that carry loss."""
    counts: RowCounts
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of, and its digest; of a table on the disk."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, shape (rows,), int64."""
        return np.diff(self.offsets)

    @property
    def digest(self) -> str:
        """SHA-256 of what can change a weight; of a table on the disk as it was when it was written."""
        if "digest" in self.meta:
            return str(self.meta["digest"])
        columns = {name: np.ascontiguousarray(getattr(self, name), COLUMNS[name]) for name in TRAINED_ON}
        return _digest({name: hashlib.sha256(column.data) for name, column in columns.items()})

    @classmethod
    def of_encoded(
        cls, task: str, rows: Sequence[Encoded], counts: RowCounts, first: int = 0, first_class: int = 0
    ) -> TokenTable:
        """Return a table in memory of rows as a kind encodes them.

        ``first`` is the position of their first example among the task's, and ``first_class`` that of the
        task's first class among those of a classification head.
        """
        offsets = _offsets([len(row.ids) for row in rows])
        spans = [(number, *span) for number, row in enumerate(rows) for span in row.carries]
        numbers, starts, stops = np.array(spans, np.int64).reshape(-1, 3).T
        steps = np.zeros(offsets[-1] + 1, np.int8)
        np.add.at(steps, offsets[numbers] + starts, 1)
        np.add.at(steps, offsets[numbers] + stops, -1)
        return cls._of_columns(
            task,
            np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32, int(offsets[-1])),
            np.cumsum(steps[:-1], dtype=np.int8).astype(np.bool_),
            offsets,
            [None if row.label is None else row.label + first_class for row in rows],
            [first + row.number for row in rows],
            counts,
        )

    @classmethod
    def of_rows(cls, task: str, rows: Sequence[Row], counts: RowCounts | None = None) -> TokenTable:
        """Return a table in memory of rows of one task."""
        return cls._of_columns(
            task,
            np.concatenate([np.empty(0, np.int32), *(row.input_ids for row in rows)], dtype=np.int32),
            np.concatenate([np.empty(0, np.bool_), *(row.carries_loss for row in rows)]),
            _offsets([len(row.input_ids) for row in rows]),
            [row.label for row in rows],
            [row.index for row in rows],
            counts or RowCounts(len(rows), 0, 0, 0),
        )

    @classmethod
    def _of_columns(
        cls,
        task: str,
        ids: np.ndarray,
        carries: np.ndarray,
        offsets: np.ndarray,
        labels: Sequence[int | None],
        indices: Sequence[int],
        counts: RowCounts,
    ) -> TokenTable:
        targets = np.diff(np.concatenate([[0], np.cumsum(carries)])[offsets])
        numbers = np.array([NO_LABEL if label is None else label for label in labels], np.int32)
        where = np.array(indices, np.int64)
        return cls(task, ids, carries, offsets, numbers, where, targets.astype(np.int32), counts)

    def _row(self, number: int) -> Row:
        own = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        label = int(self.labels[number])
        return Row(
            self.input_ids[own],
            self.carries_loss[own],
            None if label == NO_LABEL else label,
            self.task,
            int(self.indices[number]),
        )


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum(np.array([0, *lengths], np.int64))


class TaskTables(Rows):
    """The rows of several tasks, one table after the other.

    Parameters
    ----------
    tables
        At least one; of different tasks.

    """

    def __init__(self, tables: Sequence[TokenTable]) -> None:
        self.tables = tuple(tables)
        self.tasks = tuple(table.task for table in tables)
        self.starts = np.cumsum([0, *map(len, tables)])
        """Shape (tasks + 1,): the number of each table's first row, and of all rows."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each task."""
        return {table.task: len(table) for table in self.tables}

    @property
    def counts(self) -> dict[str, RowCounts]:
        """What became of each task's examples."""
        return {table.task: table.counts for table in self.tables}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, shape (rows,), int64."""
        return np.concatenate([table.lengths for table in self.tables])

    @property
    def targets(self) -> np.ndarray:
        """Tokens of every row that carry loss, shape (rows,), int32."""
        return np.concatenate([table.targets for table in self.tables])

    @property
    def digest(self) -> str:
        """SHA-256 of all that can change a weight: tokens, which of them carry loss, labels, tasks."""
        return files.digest_json([[table.task, table.digest] for table in self.tables])

    def tasks_of(self, numbers: np.ndarray | int) -> np.ndarray:
        """Return the position of each row's task in ``tasks``, int64, the shape of ``numbers``."""
        return np.asarray(np.searchsorted(self.starts, numbers, side="right") - 1)

    def _row(self, number: int) -> Row:
        task = int(self.tasks_of(number))
        return self.tables[task][number - int(self.starts[task])]


def write(folder: Path, batches: Iterable[TokenTable], meta: Mapping[str, Any]) -> None:
    """Write the rows of one task, batch after batch, into a folder that is empty.

    Whoever calls it makes the folder appear whole; its description, ``meta.json``, is written last.
    """
    counts, tokens, task = np.zeros(4, np.int64), 0, ""
    with contextlib.ExitStack() as stack:
        written = {name: _Column(stack.enter_context((folder / name).open("wb")), name) for name in COLUMNS}
        written["offsets"].put(np.zeros(1))
        for batch in batches:
            for name, column in written.items():
                # every batch counts its tokens from zero
                column.put(batch.offsets[1:] + tokens if name == "offsets" else getattr(batch, name))
            counts += list(asdict(batch.counts).values())
            tokens, task = tokens + len(batch.input_ids), batch.task
        for column in written.values():
            column.flush()
    found = {
        "task": task,
        "tokens": tokens,
        "counts": asdict(RowCounts(*map(int, counts))),
        "bytes": {name: (folder / name).stat().st_size for name in COLUMNS},
        "digest": _digest({name: column.sum for name, column in written.items()}),
        "written": files.timestamp(),
    }
    files.write_json(folder / META, {**meta, **found})


class _Column:
    """One column under way to the disk, and the SHA-256 of what it holds so far."""

    def __init__(self, handle: IO[bytes], name: str) -> None:
        self.handle, self.dtype, self.sum = handle, COLUMNS[name], hashlib.sha256()

    def put(self, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, self.dtype).data
        self.sum.update(content)
        self.handle.write(content)

    def flush(self) -> None:
        self.handle.flush()
        os.fsync(self.handle.fileno())


def _digest(sums: Mapping[str, Any]) -> str:
    return files.digest_json([[name, sums[name].hexdigest()] for name in TRAINED_ON])


def is_whole(folder: Path) -> bool:
    """Say whether a folder holds a table with all that was written of it."""
    if not (folder / META).is_file():
        return False
    sizes = files.read_json(folder / META)["bytes"]
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == sizes[name] for name in COLUMNS
    )


def read(folder: Path) -> TokenTable:
    """Map a table into memory.

    Raises
    ------
    IntegrityError
        If a file of it has another size than was written.

    """
    if not is_whole(folder):
        raise IntegrityError(f"{folder}: not a whole table of tokens; delete it and prepare the data again")
    meta = files.read_json(folder / META)
    columns = {name: _mapped(folder / name, dtype) for name, dtype in COLUMNS.items()}
    counts = RowCounts(**meta["counts"])
    return TokenTable(task=meta["task"], **columns, counts=counts, meta=meta)


def _mapped(path: Path, dtype: str) -> np.ndarray:
    if not path.stat().st_size:  # nothing can be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
