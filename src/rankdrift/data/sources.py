"""Where a task's rows come from: its generator, a folder of Parquet slices, or the Hugging Face hub.

Every row is checked where it is read, so that a wrong label or an empty column is reported with its file and
row, and not met as a strange loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import Example, Task


@dataclass(frozen=True)
class _Rows:
    """Rows as they were read, and what to call their origin in a message."""

    origin: str
    rows: list[dict[str, Any]]


def load_examples(task: Task, split: str, data: DataSpec) -> list[Example]:
    """Return the examples of a split ("train" or "validation"), in the order of the source.

    Examples of the same group each carry the references of the whole group, also of rows beyond the limit.

    Raises
    ------
    UserError
        Where the source, a column or a usable value is missing; it names file, row, column and value.

    """
    source = _read(task, split, data)
    if not source.rows:
        raise UserError(f"{source.origin}: the split '{split}' has no rows; provide at least one")
    examples = [_example(task, row, source.origin, number) for number, row in enumerate(source.rows)]
    limit = data.train_limit if split == "train" else data.validation_limit
    return _with_shared_references(examples)[:limit]


def _read(task: Task, split: str, data: DataSpec) -> _Rows:
    if data.root is not None and task.folder is not None:
        return _read_parquet(task, split, Path(data.root))
    if task.generate is not None:
        return _Rows(f"built-in task '{task.name}'", task.generate(split))
    if task.hub is not None:
        return _read_hub(task, split, *task.hub)
    raise UserError(
        f"task '{task.name}' is neither built in nor on the hub: set data.root to a folder with it"
    )


def _read_parquet(task: Task, split: str, root: Path) -> _Rows:
    """Read ``<root>/<task.folder>/<split>.parquet``."""
    assert task.folder is not None
    for folder in (root, root / task.folder):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; data.root={root} must hold {task.folder}/{split}.parquet"
            )
    path = root / task.folder / f"{split}.parquet"
    if not path.is_file():
        found = ", ".join(sorted(file.name for file in path.parent.glob("*.parquet"))) or "no Parquet file"
        raise UserError(f"{path}: no such file; the folder has {found}")
    try:
        _require_columns(task, pyarrow.parquet.read_schema(path).names, str(path))
        return _Rows(str(path), pyarrow.parquet.read_table(path, columns=list(task.columns)).to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); replace it") from None


def _read_hub(task: Task, split: str, name: str, configuration: str | None) -> _Rows:
    # importing datasets takes seconds, which runs on local or built-in data need not spend
    import datasets

    origin = f"hub dataset {name}{f' ({configuration})' if configuration else ''}, split '{split}'"
    try:
        table = datasets.load_dataset(name, configuration, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{origin}: cannot be loaded ({type(error).__name__}: {error}); connect to the hub, or set "
            f"data.root to a folder that holds {task.folder}/{split}.parquet"
        ) from None
    _require_columns(task, table.column_names, origin)
    return _Rows(origin, table.select_columns(list(task.columns)).to_list())


def _require_columns(task: Task, found: Iterable[str], origin: str) -> None:
    names = list(found)
    missing = [column for column in task.columns if column not in names]
    if missing:
        raise UserError(
            f"{origin}: task '{task.name}' needs the column {', '.join(map(repr, missing))}; "
            f"found {', '.join(map(repr, names)) or 'none'}: rename or add it"
        )


def _example(task: Task, row: Mapping[str, Any], origin: str, number: int) -> Example:
    try:
        return task.example(row)
    except UserError as error:
        raise UserError(f"{origin}: row {number}: {error}") from None


def _with_shared_references(examples: list[Example]) -> list[Example]:
    shared: dict[str, dict[str, None]] = {}
    for example in examples:
        shared.setdefault(example.group, {}).update(dict.fromkeys(example.references))
    return [
        replace(example, references=tuple(shared[example.group])) if example.group else example
        for example in examples
    ]
