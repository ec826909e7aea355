"""What holds of every task: prompts as literal strings, labels, order and separation of splits."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from rankdrift import files, registry
from rankdrift.data.sources import load_examples
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import Example, Task

# a row as its data set has it, and the example that a reader of the task's file expects
GOLDEN = {
    "sst2": (
        {"sentence": "a gorgeous , witty , seductive movie . ", "label": 1},
        Example("Review: a gorgeous , witty , seductive movie .\nSentiment:", " positive", 1),
    ),
    "mrpc": (
        {"sentence1": "He left on Monday .", "sentence2": "On Monday he left .", "label": 1},
        Example("First: He left on Monday .\nSecond: On Monday he left .\nSame meaning:", " yes", 1),
    ),
    "rte": (
        {"sentence1": "The dog slept on the mat.", "sentence2": "A dog was awake.", "label": 1},
        Example(
            "Text: The dog slept on the mat.\nClaim: A dog was awake.\nThe text supports the claim:", " no", 1
        ),
    ),
    "e2e_nlg": (
        {
            "meaning_representation": "name[The Mill], food[English]",
            "human_reference": "The Mill is English.",
        },
        Example(
            "Restaurant: name[The Mill], food[English]\nDescription:",
            " The Mill is English.",
            references=("The Mill is English.",),
            group="name[The Mill], food[English]",
        ),
    ),
    "topic": (
        {"text": "Ruth had a tooth pulled.", "label": 1},
        Example("Ruth had a tooth pulled.\nTopic:", " health", 1),
    ),
    "describe": (
        {"record": "name: Slate Loop | length: 4 km", "sentence": "Slate Loop is a walk of 4 km."},
        Example(
            "Trail | name: Slate Loop | length: 4 km\nDescription:",
            " Slate Loop is a walk of 4 km.",
            references=("Slate Loop is a walk of 4 km.",),
            group="name: Slate Loop | length: 4 km",
        ),
    ),
}
NAMES = registry.names("task")
BUILT_IN = [name for name in NAMES if registry.load("task", name).generate]
CLASSIFICATION = [name for name in NAMES if registry.load("task", name).kind == "classification"]


@pytest.mark.parametrize("name", NAMES)
def test_golden_example(name: str) -> None:
    row, expected = GOLDEN[name]
    assert registry.load("task", name).example(row) == expected


@pytest.mark.parametrize("name", NAMES)
def test_declaration(name: str) -> None:
    task: Task = registry.load("task", name)
    assert task.name == name
    assert task.version >= 1
    assert set(GOLDEN[name][0]) == set(task.columns)
    assert task.metrics
    assert set(task.metrics) <= set(registry.names("metric"))
    assert (task.kind == "classification") == (len(task.choices) >= 2)
    assert len(set(task.choices)) == len(task.choices)
    assert task.generate or (task.hub and task.folder)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_each_label_is_written_as_its_choice(name: str) -> None:
    task: Task = registry.load("task", name)
    row = GOLDEN[name][0]
    targets = [task.example({**row, "label": label}).target for label in range(len(task.choices))]
    assert tuple(targets) == task.choices


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
def test_wrong_label_is_named(name: str, label: object, message: str) -> None:
    with pytest.raises(UserError, match=f"'label'.*{message}"):
        registry.load("task", name).example({**GOLDEN[name][0], "label": label})


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name in NAMES for column in GOLDEN[name][0] if column != "label"]
)
@pytest.mark.parametrize(("value", "message"), [(None, "must hold text, got None"), ("  ", "is empty")])
def test_missing_text_is_named(name: str, column: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=f"'{column}' {message}"):
        registry.load("task", name).example({**GOLDEN[name][0], column: value})


def _check_splits(name: str, data: DataSpec) -> None:
    task: Task = registry.load("task", name)
    train, validation = (load_examples(task, split, data) for split in ("train", "validation"))
    assert not {example.prompt for example in train} & {example.prompt for example in validation}
    for example in [*train, *validation]:
        if task.kind == "classification":
            assert example.label is not None
            assert example.target == task.choices[example.label]
        else:
            assert example.target.removeprefix(" ") in example.references


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_splits_do_not_overlap(name: str) -> None:
    _check_splits(name, DataSpec())


@pytest.mark.parametrize("name", [name for name in NAMES if registry.load("task", name).folder])
def test_real_splits_do_not_overlap(name: str, shared_data: object) -> None:
    _check_splits(name, DataSpec(root=str(shared_data)))


# SHA-256 over the canonical JSON of the first 20 examples; a change of wording must raise the task's version
DIGESTS = {
    ("describe", 1, "train"): "f699b74721d83285600fd2b1d4ce4b694e58827b604433568b8a7b6ae3ad9645",
    ("describe", 1, "validation"): "ba0cc1cfc8fedc373ff54167ef4b7d34ec3bcad5305939f7cfb0c0359eed81b1",
    ("topic", 1, "train"): "a2d0efdab9d873328f93bc63e98ed6cecf452cbddbb5c0843ad5bfa94c2e576e",
    ("topic", 1, "validation"): "12d2775b849669077117420f9ef9de691d933b478106aabb2dfd8a25e270bfde",
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_built_in_rows_are_the_same_every_time(name: str, split: str) -> None:
    task: Task = registry.load("task", name)
    assert task.generate is not None
    assert task.generate(split) == task.generate(split)
    first = [dataclasses.asdict(task.example(row)) for row in task.generate(split)[:20]]
    assert not any(example.pop("document") for example in first)  # rows of these stand alone
    assert files.digest_json(first) == DIGESTS[name, task.version, split]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_rows_are_many_and_distinct(name: str) -> None:
    task: Task = registry.load("task", name)
    assert task.generate is not None
    for split, least in (("train", 2000), ("validation", 400)):
        rows = Counter(tuple(row.values()) for row in task.generate(split))
        assert len(rows) >= least
        assert max(rows.values()) == 1
