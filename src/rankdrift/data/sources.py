"""Where a task's rows come from: its generator, a folder of files, files of one's own, or the hub.

Every row is checked where it is read, so that a wrong label or an empty column is reported with its file and
row, and not met as a strange loss. What selects and what reports never share a row: where the labels of a
test split are not public, the official validation split reports, and rows to select by are carved out of the
training rows, by a hash of what they ask.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankdrift.data.files_of_rows import files_of_split, read_rows, require_columns
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import SPLITS, Example, Source, Split, Task

CARVED = 0.1
"""Share of the training rows that select, where a user has no test split (``data.carve``)."""

CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps a data set's rows as Parquet, also where a script of its own makes them:
such scripts are not run any more (datasets 4)."""


class _NoSplitError(UserError):
    """A split that a task does not have."""


@dataclass(frozen=True)
class _Rows:
    """Rows as they were read, and what to call their origin in a message."""

    origin: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Fetched:
    """A task's source at hand."""

    rows: Mapping[str, int]
    """Of every split, by the source's names."""
    made: frozenset[Path]
    """Folders of what the hub's library made of the files that it fetched."""


def load_examples(task: Task, split: Split, data: DataSpec) -> list[Example]:
    """Return the examples of a split, in the order of the source.

    Examples of the same group each carry the references of the whole group, also of rows beyond the limit.

    Raises
    ------
    UserError
        Where the source, a column or a usable value is missing; it names file, row, column and value.

    """
    _, share = split_of(task, split, data)
    origin, rows = rows_of(task, split, data)
    examples = [_example(task, row, origin, number) for number, row in enumerate(rows)]
    if share:
        examples = [example for example in examples if is_carved(example, share) == (split == "validation")]
        if not examples:
            raise UserError(f"{origin}: too few rows to carve a '{split}' split out of; provide more")
    limits = {"train": data.train_limit, "validation": data.validation_limit, "test": None}
    return _with_shared_references(examples)[: limits[split]]


def rows_of(task: Task, split: Split, data: DataSpec) -> tuple[str, list[dict[str, Any]]]:
    """Return the rows that a split is taken from, as the task's ``example`` takes them, and their origin.

    Raises UserError where the source or a column is missing, or where there is no row.
    """
    theirs, _ = split_of(task, split, data)
    source = _read(task, theirs, data)
    rows = source.rows if task.gather is None else task.gather(list(source.rows))
    if not rows:
        raise UserError(f"{source.origin}: the split '{theirs}' has no rows; provide at least one")
    return source.origin, rows


def fetch(task: Task, data: DataSpec) -> Fetched:
    """Have all splits of a task's source at hand, the hub's in the cache of its library.

    Raises UserError where one or a column is missing.
    """
    rows: dict[str, int] = {}
    made: set[Path] = set()
    for split in SPLITS:
        with contextlib.suppress(_NoSplitError):
            theirs, _ = split_of(task, split, data)
            if theirs in rows:
                continue
            if from_hub(task, data):
                assert task.source is not None
                table = _hub_table(task, theirs, task.source)[1]
                rows[theirs] = len(table)
                made |= {Path(file["filename"]).parent for file in table.cache_files}
            else:
                rows[theirs] = len(rows_of(task, split, data)[1])
    return Fetched(rows, frozenset(made))


def from_hub(task: Task, data: DataSpec) -> bool:
    """Say whether a task's rows come from the hub: neither from files nor built in."""
    source = task.source
    return source is not None and source.files is None and data.root is None and task.generate is None


def split_of(task: Task, split: Split, data: DataSpec) -> tuple[str, float]:
    """Return the source's name of a split, and the share that is carved out of it (0: all of it is taken).

    Raises UserError where the task has no such split.
    """
    source = task.source or Source()
    share, names = source.carved, {ours: source.named(ours) for ours in SPLITS}
    if source.files is not None:
        names = {ours: ours if ours in source.files else None for ours in SPLITS}
    if task.name in data.carve and not share:
        share, names = CARVED, {**names, "validation": None, "test": names["validation"]}
    if share and split == "validation":
        names["validation"] = names["train"]
    theirs = names[split]
    if theirs is None:
        has = ", ".join(ours for ours in SPLITS if names[ours])
        raise _NoSplitError(
            f"task '{task.name}' has no split '{split}', only {has}; choose another task or split"
        )
    return theirs, share if split != "test" else 0.0


def is_carved(example: Example, share: float) -> bool:
    """Say whether a training row selects instead: a matter of what it asks, not of its place or its answer.

    Rows about one text, or with one input, go together.
    """
    asked = (
        example.document or example.group or example.prompt or str(example.messages[:-1] or example.target)
    )
    number = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big")
    return number < share * 2**64


def local_files(task: Task, split: Split, data: DataSpec) -> list[Path]:
    """Return the files that a split is read from; none for built-in rows and for those of the hub."""
    theirs, _ = split_of(task, split, data)
    source = task.source
    if source is None:
        return []
    if source.files is not None:
        return [Path(source.files[_our(theirs)])]
    folder = folder_of(task, data)
    return _files(task, folder, theirs) if folder else []


def folder_of(task: Task, data: DataSpec) -> Path | None:
    """Return a task's folder below ``data.root``; None without a root, or for a task that needs none."""
    if data.root is None or task.source is None or task.source.files is not None:
        return None
    root, source = Path(data.root), task.source
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data.root must hold {source.folder or source.hub}")
    candidates = [root / source.folder] if source.folder else []
    if source.hub:
        for name in (source.hub, source.hub.rpartition("/")[2]):
            candidates += [root / name / source.configuration] if source.configuration else []
            candidates.append(root / name)
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise UserError(
            f"{candidates[0]}: no such folder; data.root={root} must hold it for task '{task.name}'"
        )
    return found


def _read(task: Task, theirs: str, data: DataSpec) -> _Rows:
    source = task.source
    if source is not None and source.files is not None:
        return _read_files(task, [Path(source.files[_our(theirs)])])
    folder = folder_of(task, data)
    if folder is not None:
        return _read_files(task, _files(task, folder, theirs))
    if task.generate is not None:
        return _Rows(f"built-in task '{task.name}'", task.generate(_our(theirs)))
    assert source is not None
    assert source.hub
    return _read_hub(task, theirs, source)


def _files(task: Task, folder: Path, theirs: str) -> list[Path]:
    try:
        return files_of_split(folder, theirs)
    except UserError as error:
        hint = f"; without a test split use data.carve=[{task.name}]" if theirs == "test" else ""
        raise UserError(f"{error}{hint}") from None


def _our(theirs: str) -> Split:
    """Return a split's name where theirs are ours."""
    return next(split for split in SPLITS if split == theirs)


def _read_files(task: Task, paths: list[Path]) -> _Rows:
    rows = [row for path in paths for row in read_rows(path, task.columns, task.name)]
    return _Rows(str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more", rows)


def _read_hub(task: Task, theirs: str, source: Source) -> _Rows:
    origin, table = _hub_table(task, theirs, source)
    return _Rows(origin, table.select_columns(list(task.columns)).to_list())


def _hub_table(task: Task, theirs: str, source: Source) -> tuple[str, Any]:
    """Return a split of the hub as its library maps it, and what to call it; its columns are there."""
    named = f"{source.hub}{f' ({source.configuration})' if source.configuration else ''}"
    origin = f"hub dataset {named}, split '{theirs}'"
    try:
        table = _load_hub(source, theirs)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{origin}: cannot be loaded ({type(error).__name__}: {error}); connect to the hub, or set "
            f"data.root to a folder that holds {source.folder or source.hub}/{theirs}.parquet"
        ) from None
    require_columns(task.columns, table.column_names, task.name, origin)
    return origin, table


def _load_hub(source: Source, theirs: str) -> Any:
    # importing datasets takes seconds, which runs on local or built-in data need not spend
    import datasets

    try:
        return datasets.load_dataset(source.hub, name=source.configuration, split=theirs)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    except datasets.exceptions.DatasetsError as error:  # of a file that cannot be read
        raise ValueError(error) from None
    # a branch of conversions has a folder for each configuration
    return datasets.load_dataset(source.hub, data_dir=source.configuration, split=theirs, revision=CONVERTED)


def _example(task: Task, row: Mapping[str, Any], origin: str, number: int) -> Example:
    try:
        return task.example(row)
    except UserError as error:
        raise UserError(f"{origin}: row {number}: {error}") from None


def _with_shared_references(examples: list[Example]) -> list[Example]:
    shared: dict[str, dict[str, None]] = {}
    for example in examples:
        if example.group:
            shared.setdefault(example.group, {}).update(dict.fromkeys(example.references))
    if not shared:
        return examples
    return [
        replace(example, references=tuple(shared[example.group])) if example.group else example
        for example in examples
    ]
