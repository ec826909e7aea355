"""What holds of every task: prompts as literal strings, labels, metrics, order and separation of splits."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN, block

from rankdrift import files, registry
from rankdrift.data.sources import load_examples, split_of
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import GROUPS, SPLITS, Example, Split, Task
from rankdrift.tasks.kinds.generation import Generation

TASKS: dict[str, Task] = {name: registry.load("task", name) for name in registry.names("task")}
BUILT_IN = [name for name, task in TASKS.items() if task.generate]
ROW_BY_ROW = [name for name, task in TASKS.items() if task.source and not task.gather]
CLASSIFICATION = [name for name, task in TASKS.items() if task.kind.name == "classification"]
CHOICES = [name for name, task in TASKS.items() if task.kind.name == "multiple_choice"]
NO_TEST = ("code_to_text", "e2e_nlg", "mrpc", "samsum", "wikisql")
"""Tasks whose slice has no test split."""


@pytest.mark.parametrize("name", TASKS)
def test_golden_example(name: str) -> None:
    row, expected = GOLDEN[name]
    assert TASKS[name].example(row) == expected


@pytest.mark.parametrize("name", TASKS)
def test_the_document_has_each_task_with_version_metrics_and_golden_prompt(name: str, root: Path) -> None:
    task, document = TASKS[name], (root / "docs" / "tasks.md").read_text()
    section = document.split(f"\n### {name} (version {task.version})\n")[1].split("\n#")[0]
    assert f"\n```text\n{block(task)}\n```\n" in section
    assert f"`{task.kind.name}`: {', '.join(f'`{metric}`' for metric in task.metrics)}" in section
    assert task.source is None or task.source.hub in section


@pytest.mark.parametrize("name", TASKS)
def test_declaration(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.version >= 1
    assert set(task.columns) <= set(GOLDEN[name][0])
    assert task.metrics
    assert {registry.load("metric", metric).reads for metric in task.metrics} <= set(task.kind.gives)
    assert len(set(task.choices)) == len(task.choices) != 1
    assert bool(task.choices) == (task.kind.name == "classification")
    assert bool(task.generate) != bool(task.source)
    assert task.source is None or (task.source.hub and task.source.folder and task.source.named("test"))
    assert GOLDEN[name][1].prompt.endswith(task.cue)


def test_groups_name_tasks() -> None:
    assert set(GROUPS) == {"similar", "dissimilar", "glue", "retention"}
    assert {name for group in GROUPS.values() for name in group} <= set(TASKS)
    assert not set(GROUPS) & set(TASKS)
    assert registry.tasks_of(["rte", "glue", "rte", "topic"]) == (
        "rte",
        "sst2",
        "mnli",
        "qqp",
        "mrpc",
        "topic",
    )


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_each_label_is_written_as_its_choice(name: str) -> None:
    task, row = TASKS[name], GOLDEN[name][0]
    targets = [task.example({**row, "label": label}).target for label in range(len(task.choices))]
    assert tuple(targets) == task.choices
    assert task.example({**row, "label": "0"}).label == 0  # as a CSV file has it


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "is -1, expected a label from 0 to .*without labels"),
        (9, "is 9, expected a label from 0"),
        ("positive", r"got 'positive' \(str\)"),
        (1.0, r"got 1\.0 \(float\)"),
        (True, r"got True \(bool\)"),
        (None, r"got None \(NoneType\)"),
    ],
)
def test_wrong_class_is_named(name: str, label: object, message: str) -> None:
    with pytest.raises(UserError, match=f"'label'.*{message}"):
        TASKS[name].example({**GOLDEN[name][0], "label": label})


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(
    ("value", "message"),
    [("", "use another split"), (-1, "use another split"), (1.0, ""), ("E", "")],
)
def test_wrong_choice_is_named(name: str, value: object, message: str) -> None:
    column = {"winogrande": "answer"}.get(name, "answerKey" if name.startswith("arc") else "label")
    with pytest.raises(UserError, match=f"column '{column}' is {value!r}, expected one of .*{message}"):
        TASKS[name].example({**GOLDEN[name][0], column: value})


MAY_BE_EMPTY = {"activity_label", "ctx_a", "ctx_b"}
EMPTY_IN_PUBLIC_ROWS = {"question1", "question2", "dialogue"}
"""Texts of which public sets have a few empty ones; for these alone no one can correct the hub's copy."""


@pytest.mark.parametrize("name", TASKS)
def test_any_wrong_column_is_an_error_that_names_it(name: str) -> None:
    """Whatever stands in a column, or in a part of it, is read or named; it never ends in a traceback."""
    row, task = GOLDEN[name][0], TASKS[name]
    bad: list[Any] = [None, 5, 1.5, True, [], {}, [None], [5], b"x"]
    whole = [(column, value) for column in task.columns for value in [*bad, " "]]
    parts = [
        (column, {**row[column], key: value})
        for column in task.columns
        if isinstance(row[column], dict)
        for key in row[column]
        for value in bad
    ]
    for column, value in whole + parts:
        told = _told(lambda column=column, value=value: task.example({**row, column: value}))
        assert not told or f"'{column}'" in told or "is number" in told or "'ctx'" in told
    empty = [name for name in task.columns if row[name] and isinstance(row[name], (str, list))]
    for column, value in itertools.product(set(empty) - MAY_BE_EMPTY, (None, "  ", [])):
        if column in EMPTY_IN_PUBLIC_ROWS and value == "  ":
            assert task.example({**row, column: value}).prompt
            continue
        assert f"'{column}'" in _told(lambda column=column, value=value: task.example({**row, column: value}))


def _told(read: Callable[[], object]) -> str:
    """Return the message of the error that reading ends in, or an empty text."""
    try:
        read()
    except UserError as error:
        return str(error)
    return ""


def _trains(task: Task) -> bool:
    return task.source is None or task.source.named("train") is not None


def _slices(name: str, root: Path) -> dict[Split, list[Example]]:
    """Return the examples of a task's splits, of those that the slice has."""
    task, found = TASKS[name], {}
    data = DataSpec(root=str(root), carve=tuple({name} & set(NO_TEST)))
    for split in SPLITS:
        told = _told(lambda split=split: found.update({split: load_examples(task, split, data)}))
        assert not told or any(f"no {what}" in told for what in ("such folder", "file of the split", "split"))
    return found


def _check(name: str, splits: dict[Split, list[Example]]) -> None:
    """What holds of real and of built-in rows: nothing is shared, and every answer is one of its answers."""
    task = TASKS[name]
    for one, two in itertools.combinations(splits.values(), 2):
        assert not {e.prompt for e in one} & {e.prompt for e in two}
        assert not {e.document for e in one if e.document} & {e.document for e in two}
        assert not {e.group for e in one if e.group} & {e.group for e in two}
    for example in itertools.chain.from_iterable(splits.values()):
        assert example.target[0] == " "
        if "choice" in task.kind.gives:
            assert example.label is not None
            choices = task.choices or example.choices or (example.target,) * len(example.contexts)
            assert example.target == choices[example.label]
        if isinstance(task.kind, Generation):
            assert not any(stop in example.target for stop in task.kind.stop)
            said = task.kind.no_answer if not example.references else example.target
            assert said == example.target
            assert task.name == "wikisql" or not example.references or said[1:] in example.references


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_real_splits_share_nothing(name: str, shared_data: Path) -> None:
    splits = _slices(name, shared_data)
    if not splits:
        pytest.skip(f"no real rows of {name}")
    if _trains(TASKS[name]) and name not in CHOICES:
        assert len(splits) == 3
    _check(name, splits)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_splits_share_nothing(name: str) -> None:
    data = DataSpec()
    _check(name, {split: load_examples(TASKS[name], split, data) for split in SPLITS})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_trains_has_all_three_splits(name: str) -> None:
    """Whose labels of the test split are hidden carves; all others take the splits as they are."""
    task, data = TASKS[name], DataSpec()
    splits = [split for split in SPLITS if _trains(task) or split == "test"]
    names = {split: split_of(task, split, data) for split in splits}
    if task.source and task.source.carved:
        assert names["train"] == names["validation"] == ("train", task.source.carved)
        assert names["test"][0].startswith("validation")
        assert names["test"][1] == 0
    elif _trains(task):
        assert names == {split: (split, 0) for split in SPLITS}


# SHA-256 over the canonical JSON of the first 20 examples; a change of wording must raise the task's version
DIGESTS = {
    ("describe", 2, "train"): "f22f978ca35ff192a70c4e82ff3bf88641b597e2e25677135b51c806ba025f33",
    ("describe", 2, "validation"): "fb0f93b16c8788bd49f032c49af874e6517c444d1c2a24e32245bf9f13e98618",
    ("describe", 2, "test"): "af44e69c06cdbca4534f7a3a8b7e324df0e6370fa0d368da7a330484a31b29f0",
    ("topic", 1, "train"): "e39467e336a1583bc443150f89f5f0ae23adebebdb13c39e316dc7ca2d06145f",
    ("topic", 1, "validation"): "d4283c88e7aec175bd927e48b71ba0f54a5668b20d75b971d912ebe8f78e9b8d",
    ("topic", 1, "test"): "078a1d5638a87aa448e3e6315e6c2f0f09c7c03773b51110bf469bace4429727",
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("split", SPLITS)
def test_built_in_rows_are_the_same_every_time(name: str, split: Split) -> None:
    task = TASKS[name]
    assert task.generate is not None
    rows = task.generate(split)
    assert rows == task.generate(split)
    first = [dataclasses.asdict(task.example(row)) for row in rows[:20]]
    assert files.digest_json(first) == DIGESTS[name, task.version, split]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_rows_are_many_and_distinct(name: str) -> None:
    task = TASKS[name]
    assert task.generate is not None
    rows = Counter(tuple(row.values()) for split in SPLITS for row in task.generate(split))
    assert len(rows) == {"topic": 2400 + 2 * 480, "describe": 3 * (800 + 2 * 160)}[name]
    assert max(rows.values()) == 1
