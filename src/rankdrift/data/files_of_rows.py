"""Rows of files: Parquet, JSON, JSON Lines and CSV, in folders as the hub lays them out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from rankdrift.errors import UserError

Rows = list[dict[str, Any]]


def files_of_split(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: ``<split>.<ending>``, or its shards, there or below ``data``.

    Of several forms the first of READERS; raises UserError where there is none.
    """
    for place in (folder, folder / "data"):
        for ending in READERS:
            whole = place / f"{split}{ending}"
            found = [whole] if whole.is_file() else sorted(place.glob(f"{split}-*-of-*{ending}"))
            if found:
                return _all_shards(found)
    there = sorted(path.name for path in folder.glob("*") if path.suffix in READERS)
    raise UserError(
        f"{folder}: no file of the split '{split}' ({split}.parquet, .jsonl, .json or .csv); the folder has "
        f"{', '.join(there) or 'no such file'}"
    )


def _all_shards(found: list[Path]) -> list[Path]:
    """Return the shards; raise UserError unless there are as many as the last one's name says."""
    shards = re.search(r"-of-(\d+)\.", found[-1].name)
    if shards is not None and len(found) != int(shards[1]):
        raise UserError(
            f"{found[-1]}: the folder has {len(found)} of {int(shards[1])} shards; add the others"
        )
    return found


def read_rows(path: Path, columns: Sequence[str], task: str) -> Rows:
    """Return the rows of a file, of these columns alone.

    Raises
    ------
    UserError
        If the file cannot be read, holds no row or lacks a column; it names the file and, where it can, the
        line.

    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: files of rows end in {', '.join(READERS)}; convert it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty; replace it")
    return reader(path, columns, task)


def require_columns(needed: Iterable[str], found: Iterable[str], task: str, origin: str) -> None:
    """Raise UserError unless all columns that a task needs are there."""
    names = list(found)
    missing = [column for column in needed if column not in names]
    if missing:
        raise UserError(
            f"{origin}: task '{task}' needs the column {', '.join(map(repr, missing))}; "
            f"found {', '.join(map(repr, names)) or 'none'}: rename or add it"
        )


def _read_parquet(path: Path, columns: Sequence[str], task: str) -> Rows:
    try:
        require_columns(columns, pyarrow.parquet.read_schema(path).names, task, str(path))
        rows: Rows = pyarrow.parquet.read_table(path, columns=list(columns)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); replace it") from None
    return rows


def _read_csv(path: Path, columns: Sequence[str], task: str) -> Rows:
    """Read texts: a CSV file does not say which of its columns are numbers; a cell may hold line breaks."""
    content = _decoded(path).encode()
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(content),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pyarrow.string())),
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable CSV file ({error}); correct it") from None
    require_columns(columns, table.column_names, task, str(path))
    rows: Rows = table.select(list(columns)).to_pylist()
    return rows


def _read_json(path: Path, columns: Sequence[str], task: str) -> Rows:
    """Read a list of objects, or one object a line."""
    text = _decoded(path)
    if text.lstrip()[:1] == "[":
        rows = _parsed(text, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path}: not a list of rows; write one object a line")
    else:
        rows = list(_lines(path, text))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is no object but {type(row).__name__}; correct it")
        require_columns(columns, row, task, f"{path}: row {number}")
    return [{column: row[column] for column in columns} for row in rows]


def _lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parsed(line, f"{path}: line {number}")


def _parsed(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{origin}: not valid JSON ({error}); correct it") from None


def _decoded(path: Path) -> str:
    """Return the text of a file in UTF-8, without the mark that some programs begin it with."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8 (byte {error.start}); convert the file") from None


READERS: dict[str, Callable[[Path, Sequence[str], str], Rows]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
}
"""Ending -> its reader, in the order in which a split's file is looked for."""
