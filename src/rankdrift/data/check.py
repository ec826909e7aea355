"""What is wrong with data: rows that cannot be used, come twice, or are trained on and scored as well."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from rankdrift import registry
from rankdrift.data.sources import is_carved, rows_of, split_of
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec, Spec
from rankdrift.tasks import SPLITS, Example, Split, Task

SHOWN = 5
"""Rows of a finding that are named."""
LONG = 10
"""Words from which on a column's text says by itself which example a row is of."""
HIDDEN: tuple[Any, ...] = (-1, "", None)
"""Labels of splits whose labels are not public."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault of one split."""

    task: str
    split: str
    what: str
    rows: tuple[int, ...] = ()
    """Numbers of the rows in their source, from 0; none where the split cannot be read at all."""

    def line(self) -> str:
        """Return it as a line."""
        if not self.rows:
            return f"{self.task}, {self.split}: {self.what}"
        shown = ", ".join(map(str, self.rows[:SHOWN])) + (", ..." if len(self.rows) > SHOWN else "")
        return f"{self.task}, {self.split}: {len(self.rows):,} rows {self.what} (row {shown})"


@dataclass
class _Checked:
    """A split that was read."""

    task: str
    split: Split
    faults: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """What is wrong -> rows."""
    prompts: dict[int, int] = field(default_factory=dict)
    """Digest of each prompt -> the first row that has it."""
    texts: dict[int, int] = field(default_factory=dict)
    """Digest of each long text of its columns -> the first row that has it."""

    def findings(self) -> Iterator[Finding]:
        for what, rows in self.faults.items():
            yield Finding(self.task, self.split, what, tuple(rows))


def check(spec: Spec, scored: Sequence[Task] = ()) -> list[Finding]:
    """Return what is wrong with the rows of the trained tasks, and with those of other tasks that are scored.

    Whatever cannot be read is a finding too. Between splits of a task prompts are compared, letters' case and
    white space aside; between tasks, whose prompts differ, also long texts of their columns.
    """
    trained = [registry.load("task", name) for name in spec.data.tasks]
    others = [task for task in scored if task.name not in {of.name for of in trained}]
    found: list[Finding] = []
    splits = [
        read
        for task in (*trained, *others)
        for split in (SPLITS if task in trained else ("test",))
        if (read := _read(task, split, spec.data, found)) is not None
    ]
    found += [finding for split in splits for finding in split.findings()]
    for task in trained:
        found += _overlaps_within([split for split in splits if split.task == task.name])
    training = [split for split in splits if split.split == "train"]
    tested = [split for split in splits if split.split == "test"]
    return found + list(_overlaps_between(training, tested))


def _read(task: Task, split: Split, data: DataSpec, found: list[Finding]) -> _Checked | None:
    """Return a split as it was checked; None where there is none, or it cannot be read, which is found."""
    try:
        _, share = split_of(task, split, data)
    except UserError:
        return None
    try:
        _, rows = rows_of(task, split, data)
    except UserError as error:
        found.append(Finding(task.name, split, f"cannot be read: {error}"))
        return None
    return _checked(task, split, share, rows)


def _checked(task: Task, split: Split, share: float, rows: Iterable[Mapping[str, Any]]) -> _Checked:
    checked = _Checked(task.name, split)
    whole: set[int] = set()
    for number, row in enumerate(rows):
        example = _example(task, row)
        if isinstance(example, str):
            if not share or split == "train":  # of rows that are shared out the fault is told of once
                checked.faults[example].append(number)
            continue
        if share and is_carved(example, share) != (split == "validation"):
            continue
        if not example.target.strip() and not example.messages:
            checked.faults["have an empty target"].append(number)
        content = hash(
            repr((example.prompt, example.target, example.choices, example.contexts, example.messages))
        )
        if content in whole:
            checked.faults["come a second time"].append(number)
        whole.add(content)
        checked.prompts.setdefault(_digest(_asked(example)), number)
        for text in _long_texts(row):
            checked.texts.setdefault(_digest(text), number)
    return checked


def _example(task: Task, row: Mapping[str, Any]) -> Example | str:
    """Return a row's example, or what is wrong with the row."""
    try:
        return task.example(row)
    except UserError as error:
        if nulls := [column for column in task.columns if row[column] is None and column != "label"]:
            return f"have no value in column '{nulls[0]}'"
        if "label" in row and row["label"] in HIDDEN:
            return f"have a hidden label, {row['label']!r}: use another split"
        reason = re.sub(r", got .*|: correct or remove.*", "", str(error))
        return f"cannot be used: {reason}"


def _overlaps_within(splits: Sequence[_Checked]) -> Iterator[Finding]:
    """Yield what two splits of a task share."""
    for number, later in enumerate(splits):
        for earlier in splits[:number]:
            shared = sorted(row for key, row in later.prompts.items() if key in earlier.prompts)
            if shared:
                what = f"have a prompt that is in {earlier.split} as well"
                yield Finding(later.task, later.split, what, tuple(shared))


def _overlaps_between(training: Sequence[_Checked], tested: Sequence[_Checked]) -> Iterator[Finding]:
    """Yield what one task trains on and another is scored by."""
    for test in tested:
        for train in training:
            if train.task == test.task:
                continue
            shared = {row for key, row in test.prompts.items() if key in train.prompts}
            shared |= {row for key, row in test.texts.items() if key in train.texts}
            if shared:
                what = f"have a text that '{train.task}' trains on"
                yield Finding(test.task, test.split, what, tuple(sorted(shared)))


def _asked(example: Example) -> str:
    if example.contexts or example.messages:
        return repr((example.contexts, example.messages[:-1]))
    return example.prompt or example.target


def _long_texts(row: Mapping[str, Any]) -> Iterator[str]:
    for value in row.values():
        if isinstance(value, str) and len(value.split(maxsplit=LONG)) >= LONG:
            yield value


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(text.casefold().split()).encode())
