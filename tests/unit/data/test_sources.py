"""Rows from a folder, from the hub and from generators, and what is said where they cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from rankdrift import registry
from rankdrift.data.sources import load_examples
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import Source, Task

CARVED: Task = registry.load("task", "sst2")
SST2 = replace(CARVED, source=Source("nyu-mll/glue", "sst2", "glue_sst2"))
"""With splits as they are stored."""
E2E: Task = registry.load("task", "e2e_nlg")
TOPIC: Task = registry.load("task", "topic")
REVIEWS = {"sentence": ["fine .", "dull .", "grand ."], "label": [1, 0, 1], "idx": [7, 8, 9]}


def _write(
    root: Path, columns: dict[str, list[Any]], split: str = "train", folder: str = "glue_sst2"
) -> Path:
    path = root / folder / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path)
    return path


def _load(root: Path, task: Task = SST2, split: str = "train", **limits: int) -> list[str]:
    return [example.target for example in load_examples(task, split, DataSpec(root=str(root), **limits))]


def test_parquet_rows_in_their_order(tmp_path: Path) -> None:
    _write(tmp_path, REVIEWS)
    examples = load_examples(SST2, "train", DataSpec(root=str(tmp_path)))
    prompts = [f"Review: {text}\nSentiment:" for text in REVIEWS["sentence"]]
    assert [example.prompt for example in examples] == prompts
    assert [example.label for example in examples] == REVIEWS["label"]


def test_limits_take_the_first_rows_of_their_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        _write(tmp_path, REVIEWS, split)
    limits = {"train_limit": 2, "validation_limit": 1}
    assert _load(tmp_path, split="train", **limits) == [" positive", " negative"]
    assert _load(tmp_path, split="validation", **limits) == [" positive"]


def test_rows_of_a_group_share_all_references(tmp_path: Path) -> None:
    meanings, sentences = ["a[1]", "b[2]", "a[1]", "a[1]"], ["One.", "Two.", "Uno.", "One."]
    columns = {"meaning_representation": meanings, "human_reference": sentences}
    _write(tmp_path, columns, folder="e2e_nlg")
    examples = load_examples(E2E, "train", DataSpec(root=str(tmp_path), train_limit=2))
    assert [example.references for example in examples] == [("One.", "Uno."), ("Two.",)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": ["fine ."], "label": [2]}, "row 0: column 'label' is 2, expected .* from 0 to 1$"),
        ({"sentence": ["fine .", "x"], "label": [1, -1]}, "row 1: column 'label' is -1.*use another split"),
        ({"sentence": ["fine ."], "label": ["g"]}, "row 0: column 'label' must hold a class index, got 'g"),
        ({"sentence": ["fine .", None], "label": [1, 0]}, "row 1: column 'sentence' must hold text"),
        ({"sentence": ["fine ."], "gold": [1]}, "needs the column 'label'; found 'sentence', 'gold'"),
        ({"sentence": [], "label": []}, "the split 'train' has no rows"),
    ],
)  # fmt: skip
def test_unusable_rows_are_named(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    path = _write(tmp_path, columns)
    with pytest.raises(UserError, match=f"^{path}.*{message}"):
        _load(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path / 'none'}: no such folder; data.root must hold"):
        _load(tmp_path / "none")
    message = f"^{tmp_path / 'glue_sst2'}: no such folder; data.root={tmp_path} must hold it for task 'sst2'"
    with pytest.raises(UserError, match=message):
        _load(tmp_path)
    _write(tmp_path, REVIEWS)
    with pytest.raises(UserError, match=r"no file of the split 'validation' .* has train.parquet"):
        _load(tmp_path, split="validation")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, REVIEWS)
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(UserError, match=f"^{path}: not a readable Parquet file"):
        _load(tmp_path)


def test_hub_is_asked_for_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str) -> datasets.Dataset:
        asked.append((name, configuration, split))
        return datasets.Dataset.from_dict(REVIEWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load_examples(SST2, "validation", DataSpec(validation_limit=2))
    assert asked == [("nyu-mll/glue", "sst2", "validation")]
    assert [example.target for example in examples] == [" positive", " negative"]


def test_hub_columns_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"text": ["fine ."]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    message = r"nyu-mll/glue \(sst2\).*needs the column 'sentence', 'label'; found 'text'"
    with pytest.raises(UserError, match=message):
        load_examples(SST2, "train", DataSpec())


@pytest.mark.parametrize("failure", [ConnectionError("offline"), ValueError("split"), RuntimeError("script")])
def test_hub_failure_says_what_to_do(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=rf"nyu-mll/glue.*{failure}.*data.root .* glue_sst2/train.parquet"):
        load_examples(SST2, "train", DataSpec())


def test_built_in_task_needs_no_root(tmp_path: Path) -> None:
    examples = load_examples(TOPIC, "train", DataSpec(root=str(tmp_path), train_limit=10))
    assert TOPIC.generate is not None
    assert examples == [TOPIC.example(row) for row in TOPIC.generate("train")[:10]]


def test_what_selects_is_carved_out_of_the_training_rows_by_their_content(tmp_path: Path) -> None:
    """About a twentieth of SST-2's, whatever their order and labels; all of the stored validation reports."""
    texts = [f"text {number}" for number in range(1000)]
    _write(tmp_path, {"sentence": texts, "label": [0] * 1000})
    _write(tmp_path, REVIEWS, "validation")
    data = DataSpec(root=str(tmp_path))
    trained = [example.prompt for example in load_examples(CARVED, "train", data)]
    selecting = [example.prompt for example in load_examples(CARVED, "validation", data)]
    assert sorted(trained + selecting) == sorted(f"Review: {text}\nSentiment:" for text in texts)
    assert 20 <= len(selecting) <= 80  # 50 expected, 6.9 standard deviation
    assert len(load_examples(CARVED, "test", data)) == len(REVIEWS["label"])
    _write(tmp_path, {"sentence": texts[::-1], "label": [1] * 1000})
    again = [example.prompt for example in load_examples(CARVED, "validation", data)]
    assert again == selecting[::-1]


def test_real_slices_load(shared_data: Path) -> None:
    counts = {
        name: [
            len(load_examples(registry.load("task", name), split, DataSpec(root=str(shared_data))))
            for split in ("train", "validation")
        ]
        for name in ("sst2", "mrpc", "rte", "e2e_nlg")
    }
    # row counts as the data folder's README states them; of sst2 and rte those that select are carved out
    assert (counts["mrpc"], counts["e2e_nlg"]) == ([3668, 408], [4000, 1000])
    assert (sum(counts["sst2"]), sum(counts["rte"])) == (4000, 2490)
