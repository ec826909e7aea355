"""Tables of tokens: what is written is what is read, row by row, and nothing that is not whole is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rankdrift.data import token_table
from rankdrift.data.token_table import COLUMNS, TaskTables, TokenTable
from rankdrift.data.tokens import Row, RowCounts
from rankdrift.errors import IntegrityError


def _rows(count: int, task: str = "a", seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(generator.integers(2, 9))
        carries = generator.random(length) < 0.5
        carries[0], carries[-1] = False, True
        ids = generator.integers(0, 2**31 - 1, length, dtype=np.int32)
        rows.append(Row(ids, carries, None if number % 3 == 0 else number % 3, task, 2 * number))
    return rows


def _plain(row: Row) -> tuple[object, ...]:
    return row.input_ids.tolist(), row.carries_loss.tolist(), row.label, row.task, row.index


def _written(folder: Path, parts: list[list[Row]], task: str = "a") -> TokenTable:
    folder.mkdir()
    counts = RowCounts(1, 2, 3, 4)
    token_table.write(folder, (TokenTable.of_rows(task, part, counts) for part in parts), {"key": "k"})
    return token_table.read(folder)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    rows = _rows(23)
    table = _written(tmp_path / "t", [[], rows[:10], [], rows[10:]])
    assert list(map(_plain, table)) == list(map(_plain, rows))
    assert table.lengths.tolist() == [len(row.input_ids) for row in rows]
    assert table.targets.tolist() == [int(row.carries_loss.sum()) for row in rows]
    assert table.counts == RowCounts(4, 8, 12, 16)
    assert table.meta["key"] == "k"
    assert (table[0].input_ids.dtype, table[0].carries_loss.dtype) == (np.int32, np.bool_)
    assert _plain(table[-1]) == _plain(rows[-1])
    assert [row.index for row in table[3:9:2]] == [6, 10, 14]
    with pytest.raises(IndexError):
        table[23]


def test_the_digest_is_the_same_however_rows_are_cut_into_batches(tmp_path: Path) -> None:
    rows = _rows(12)
    whole, parts = _written(tmp_path / "w", [rows]), _written(tmp_path / "p", [rows[:1], rows[1:]])
    assert whole.digest == parts.digest == TokenTable.of_rows("a", rows).digest


def test_the_border_between_rows_counts() -> None:
    ids, carries = np.arange(6, dtype=np.int32), np.array([False, True] * 3)
    cut = [[Row(ids[:n], carries[:n], 0, "a", 0), Row(ids[n:], carries[n:], 0, "a", 1)] for n in (2, 4)]
    assert len({TokenTable.of_rows("a", rows).digest for rows in cut}) == 2


def test_what_is_read_cannot_be_written_to(tmp_path: Path) -> None:
    table = _written(tmp_path / "t", [_rows(3)])
    with pytest.raises(ValueError, match="read-only"):
        table.input_ids[0] = 1


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_is_cut_is_no_table(column: str, tmp_path: Path) -> None:
    _written(tmp_path / "t", [_rows(5)])
    path = tmp_path / "t" / column
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="not a whole table of tokens; delete it and prepare"):
        token_table.read(tmp_path / "t")
    path.unlink()
    assert not token_table.is_whole(tmp_path / "t")


def test_a_failure_leaves_no_description(tmp_path: Path) -> None:
    def batches() -> Iterator[TokenTable]:
        yield TokenTable.of_rows("a", _rows(2))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        token_table.write(tmp_path, batches(), {})
    assert not token_table.is_whole(tmp_path)


def test_tables_of_several_tasks_are_one_sequence() -> None:
    rows = [_rows(4, "a"), _rows(1, "b", 1), _rows(3, "c", 2)]
    tables = TaskTables([TokenTable.of_rows(part[0].task, part) for part in rows])
    flat = [row for part in rows for row in part]
    assert list(map(_plain, tables)) == list(map(_plain, flat))
    assert tables.sizes == {"a": 4, "b": 1, "c": 3}
    assert tables.lengths.tolist() == [len(row.input_ids) for row in flat]
    assert tables.tasks_of(np.arange(8)).tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    swapped = TaskTables([tables.tables[1], tables.tables[0], tables.tables[2]])
    renamed = TaskTables([dataclasses.replace(tables.tables[0], task="x"), *tables.tables[1:]])
    assert len({tables.digest, swapped.digest, renamed.digest}) == 3
