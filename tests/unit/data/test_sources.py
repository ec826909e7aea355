"""Rows from a folder, the hub and generators; what is carved; what is said where they cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from rankdrift import registry
from rankdrift.data.sources import is_carved, load_examples, local_files, split_of
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import Example, Source, Split, Task

MRPC: Task = registry.load("task", "mrpc")
SST2: Task = replace(registry.load("task", "sst2"), source=Source("nyu-mll/glue", "sst2", "glue_sst2"))
"""With the splits as they are; the real one carves."""
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


def _load(root: Path, task: Task = SST2, split: Split = "train", **limits: int) -> list[str]:
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
        ({"sentence": [5], "label": [1]}, "row 0: column 'sentence' must hold text, got 5"),
        ({"sentence": ["fine ."], "label": [1.0]}, r"row 0: column 'label' .* got 1\.0 \(float\)"),
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
    with pytest.raises(
        UserError, match=f"^{tmp_path / 'none'}: no such folder; data.root must hold glue_sst2"
    ):
        _load(tmp_path / "none")
    message = f"^{tmp_path / 'glue_sst2'}: no such folder; data.root={tmp_path} must hold it for task 'sst2'"
    with pytest.raises(UserError, match=message):
        _load(tmp_path)
    _write(tmp_path, REVIEWS)
    with pytest.raises(
        UserError, match=r"no file of the split 'validation' .*; the folder has train.parquet$"
    ):
        _load(tmp_path, split="validation")
    with pytest.raises(UserError, match=r"split 'test'.*without a test split use data.carve=\[sst2\]"):
        _load(tmp_path, split="test")


@pytest.mark.parametrize(
    "folder",
    [
        "glue_sst2",
        "nyu-mll/glue/sst2",
        "nyu-mll/glue",
        "glue/sst2",
        "glue",
        "glue_sst2/data",
        "glue/sst2/data",
    ],
)
def test_layouts_of_folders(folder: str, tmp_path: Path) -> None:
    path = _write(tmp_path, REVIEWS, folder=folder)
    assert _load(tmp_path) == [" positive", " negative", " positive"]
    assert local_files(SST2, "train", DataSpec(root=str(tmp_path))) == [path]


def test_shards_are_read_in_their_order_and_none_may_be_missing(tmp_path: Path) -> None:
    for number, label in ((1, 0), (0, 1)):
        _write(tmp_path, {"sentence": ["fine ."], "label": [label]}, f"train-0000{number}-of-00002")
    assert _load(tmp_path) == [" positive", " negative"]
    (tmp_path / "glue_sst2" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet: .* 1 of 2 shards; add the others"):
        _load(tmp_path)


ROWS = '{"sentence": "fine .", "label": 1}\n{"sentence": "dull .", "label": 0}\n'
FORMS = {
    "train.jsonl": ROWS,
    "train.json": json.dumps([json.loads(line) for line in ROWS.splitlines()], indent=1),
    "train.csv": "label,sentence\n1,fine .\n0,dull .\n",
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", [*FORMS, "lines.json"])
def test_forms_of_files(name: str, mark: str, tmp_path: Path) -> None:
    """JSON may be a list or a row a line, whatever its ending; some programs begin a file with a mark."""
    content = FORMS["train.jsonl"] if name == "lines.json" else FORMS[name]
    _put(tmp_path, name.replace("lines", "train"), (mark + content).encode())
    assert _load(tmp_path) == [" positive", " negative"]


def test_cells_of_csv_are_texts_with_their_zeros_and_line_breaks(tmp_path: Path) -> None:
    _put(tmp_path, "train.csv", b'label,sentence\n1,007\n0,"so,\n""so"""\n1,null\n')
    examples = load_examples(SST2, "train", DataSpec(root=str(tmp_path)))
    said = [example.prompt.removeprefix("Review: ").removesuffix("\nSentiment:") for example in examples]
    assert said == ["007", 'so,\n"so"', "null"]


def test_a_cell_of_csv_may_be_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    cell = "so,\n" * 200_000
    _put(tmp_path, "train.csv", f'label,sentence\n1,"{cell}"\n0,"{cell}"\n1,"{cell}"\n'.encode())
    examples = load_examples(SST2, "train", DataSpec(root=str(tmp_path)))
    assert [example.prompt for example in examples] == [f"Review: {cell.strip()}\nSentiment:"] * 3


def _put(root: Path, name: str, content: bytes) -> Path:
    path = root / "glue_sst2" / name
    path.parent.mkdir()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", ROWS.encode() + b'{"sentence": "\xff"}', "line 3 is not UTF-8 .*convert the file"),
        ("train.csv", b"label,sentence\n1,fine\n0,\xff\n", "line 3 is not UTF-8 .*convert the file"),
        ("train.jsonl", ROWS.encode() + b'{"sentence": "cut o', "line 3: not valid JSON .*correct it"),
        ("train.json", b"[1, 2]", "row 0 is no object but int; correct it"),
        ("train.json", b"[{]", "not valid JSON"),
        ("train.jsonl", ROWS.encode() + b'{"sentence": "x"}', "row 2: task 'sst2' needs the column 'label'"),
        ("train.csv", b"label,text\n1,fine\n", "needs the column 'sentence'; found 'label', 'text'"),
        ("train.csv", b"label,sentence\n1,fine,more\n", "not a readable CSV file"),
        ("train.csv", b"label,sentence\n", "the split 'train' has no rows"),
        ("train.csv", b"label,sentence\n-1,fine\n", "row 0: column 'label' is -1.*use another split"),
        ("train.csv", b"label,sentence\npositive,fine\n", "row 0: column 'label' .* got 'positive'"),
        ("train.csv", b"label,sentence\n1,\n", "row 0: column 'sentence' is empty"),
        *((f"train.{ending}", b"", "the file is empty; replace it") for ending in ("parquet", "json", "csv")),
    ],
)
def test_bad_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = _put(tmp_path, name, content)
    with pytest.raises(UserError, match=f"^{path}.*{message}"):
        _load(tmp_path)


def test_a_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, REVIEWS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"^{path}: not a readable Parquet file"):
        _load(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, REVIEWS)
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(UserError, match=f"^{path}: not a readable Parquet file"):
        _load(tmp_path)


def test_hub_is_asked_for_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(hub: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((hub, name, split))
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


MADE = [Example(f"Is {number} odd?", " no") for number in range(4000)]


def test_what_is_carved_depends_on_what_a_row_asks_alone() -> None:
    """A share within 3.5 standard deviations of a binomial one; the same whatever else a row has."""
    for share in (0.05, 0.1):
        count = sum(is_carved(example, share) for example in MADE)
        assert abs(count - share * 4000) < 3.5 * (4000 * share * (1 - share)) ** 0.5
    more = {"target": " yes", "label": 1, "references": ("yes",), "choices": (" a", " b")}
    assert all(is_carved(example, 0.1) == is_carved(replace(example, **more), 0.1) for example in MADE[:500])
    assert {is_carved(example, 0.1) for example in MADE if is_carved(example, 0.05)} == {True}


@pytest.mark.parametrize(
    "made",
    [
        lambda n: Example("", f"text {n}"),
        lambda n: Example("", "Yes.", messages=({"role": "user", "content": f"{n}"}, {"role": "assistant"})),
        lambda n: registry.load("task", "winogrande").example(
            {"sentence": f"The {n} and _ ran.", "option1": "a", "option2": "b", "answer": 1}
        ),
    ],
)
def test_rows_of_every_kind_are_carved_one_by_one(made: Any) -> None:
    assert 60 <= sum(is_carved(made(number), 0.1) for number in range(1000)) <= 140


def test_the_answer_of_a_gap_or_a_chat_does_not_decide_what_is_carved() -> None:
    row = {"sentence": "The cup fell as _ was wet.", "option1": "it", "option2": "she"}
    winogrande = registry.load("task", "winogrande")
    for share in (number / 40 for number in range(40)):
        assert len({is_carved(winogrande.example({**row, "answer": answer}), share) for answer in "12"}) == 1
        user = {"role": "user", "content": "Who?"}
        chats = [Example("", said, messages=(user, {"role": "assistant", "content": said})) for said in "ab"]
        assert len({is_carved(chat, share) for chat in chats}) == 1


def test_rows_about_one_text_or_one_input_are_carved_together() -> None:
    for name in ("document", "group"):
        together = [replace(example, **{name: "the same"}) for example in MADE[:50]]
        assert len({is_carved(example, 0.5) for example in together}) == 1


def test_carving_does_not_look_at_place_or_at_other_rows(tmp_path: Path) -> None:
    sentences = [f"film {number} ." for number in range(300)]
    task = registry.load("task", "sst2")
    found = {}
    for name, order in (("a", sentences), ("b", sentences[::-1]), ("c", sentences[:150])):
        _write(tmp_path / name, {"sentence": order, "label": [0] * len(order)})
        splits = [
            load_examples(task, s, DataSpec(root=str(tmp_path / name))) for s in ("train", "validation")
        ]
        found[name] = [[example.prompt for example in split] for split in splits]
        assert sum(map(len, found[name])) == len(order)
    (train, carved), half = found["a"], {f"Review: {text}\nSentiment:" for text in sentences[:150]}
    assert [train[::-1], carved[::-1]] == found["b"]
    assert [[p for p in part if p in half] for part in (train, carved)] == found["c"]
    assert carved


def test_a_user_may_carve_where_there_is_no_test_split(tmp_path: Path) -> None:
    plain, carve = DataSpec(root=str(tmp_path)), DataSpec(root=str(tmp_path), carve=("mrpc",))
    assert [split_of(MRPC, split, plain) for split in ("train", "validation", "test")] == [
        ("train", 0.0),
        ("validation", 0.0),
        ("test", 0.0),
    ]
    assert [split_of(MRPC, split, carve) for split in ("train", "validation", "test")] == [
        ("train", 0.1),
        ("train", 0.1),
        ("validation", 0.0),
    ]
    _write(tmp_path, {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}, folder="glue_mrpc")
    empty = (
        "train"
        if is_carved(MRPC.example({"sentence1": "a", "sentence2": "b", "label": 1}), 0.1)
        else "validation"
    )
    with pytest.raises(UserError, match=f"too few rows to carve a '{empty}' split out of; provide more"):
        load_examples(MRPC, empty, carve)  # type: ignore[arg-type]


def test_limits_count_what_is_left_after_carving(tmp_path: Path) -> None:
    task = registry.load("task", "sst2")
    _write(tmp_path, {"sentence": [f"film {n} ." for n in range(300)], "label": [0] * 300})
    data = DataSpec(root=str(tmp_path), train_limit=7, validation_limit=3)
    assert [len(load_examples(task, split, data)) for split in ("train", "validation")] == [7, 3]  # type: ignore[arg-type]


def test_real_slices_load(shared_data: Path) -> None:
    """Row counts as the data folder's README states them; a carving task's add up to its training rows."""
    data = DataSpec(root=str(shared_data))
    counts = {
        name: [len(load_examples(registry.load("task", name), s, data)) for s in ("train", "validation")]
        for name in ("mrpc", "e2e_nlg", "cnn_dailymail", "sst2", "rte")
    }
    assert counts["mrpc"] == [3668, 408]
    assert counts["e2e_nlg"] == [4000, 1000]
    assert counts["cnn_dailymail"] == [200, 500]
    assert {name: sum(counts[name]) for name in ("sst2", "rte")} == {"sst2": 4000, "rte": 2490}
    assert len(load_examples(registry.load("task", "sst2"), "test", data)) == 872
