"""Planted faults are found, each with its task, split and rows; sound data have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankdrift import registry
from rankdrift.data.check import Finding, check
from rankdrift.spec import parse_spec

Write = Callable[..., None]
LONG = "one two three four five six seven eight nine ten"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(folder: str, split: str, **columns: list[Any]) -> None:
        path = tmp_path / folder / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame(columns).to_parquet(path)

    for number, split in enumerate(("train", "validation", "test")):
        texts = [f"text {number} {row}" for row in range(4)]
        write("glue_mrpc", split, sentence1=texts, sentence2=["x"] * 4, label=[0, 1, 0, 1])
    return write


def _found(root: Path, task: str = "mrpc", scored: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
    spec = parse_spec({"data": {"tasks": [task], "root": str(root)}})
    findings = check(spec, [registry.load("task", name) for name in scored])
    return [(finding.task, finding.split, finding.what, finding.rows) for finding in findings]


def test_sound_data_have_no_findings(write: Write, tmp_path: Path) -> None:
    assert _found(tmp_path) == []
    assert check(parse_spec({"data": {"tasks": ["topic", "describe"]}})) == []


@pytest.mark.parametrize(
    ("columns", "what", "rows"),
    [
        ({"sentence1": ["a", None, "c", None]}, "have no value in column 'sentence1'", (1, 3)),
        ({"sentence1": ["a", "b", "a", "a"], "label": [0, 1, 0, 1]}, "come a second time", (2,)),
        ({"label": [0, -1, -1, 1]}, "have a hidden label, -1: use another split", (1, 2)),
        (
            {"label": [0, 7, 1, 1]},
            "cannot be used: column 'label' is 7, expected a label from 0 to 1",
            (1,),
        ),
        ({"sentence1": ["a", "b", " ", "d"]}, "cannot be used: column 'sentence1' is empty (' ')", (2,)),
    ],
)
def test_faults_of_rows(columns: dict[str, Any], what: str, rows: Any, write: Write, tmp_path: Path) -> None:
    sound = {"sentence1": ["a", "b", "c", "d"], "sentence2": ["x"] * 4, "label": [0, 1, 0, 1]}
    write("glue_mrpc", "train", **sound | columns)
    assert _found(tmp_path) == [("mrpc", "train", what, rows)]


def test_an_empty_target_is_found(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"q": "a", "a": "b"}\n{"q": "c", "a": "  "}\n')
    declared = "name: own\nkind: generation\nprompt: '{q}'\ntarget: '{a}'\nfiles: {train: own.jsonl}\n"
    (tmp_path / "own.yaml").write_text(declared)
    found = _found(tmp_path, str(tmp_path / "own.yaml"))
    assert len(found) == 1
    assert found[0][3] == (1,)
    assert "empty" in found[0][2]


def test_overlap_of_splits_does_not_depend_on_case_and_white_space(write: Write, tmp_path: Path) -> None:
    texts = ["Text  0 2", "new", "text 1 3", "other"]
    write("glue_mrpc", "test", sentence1=texts, sentence2=["x", "x", "X", "x"], label=[0, 1, 0, 1])
    assert _found(tmp_path) == [
        ("mrpc", "test", "have a prompt that is in train as well", (0,)),
        ("mrpc", "test", "have a prompt that is in validation as well", (2,)),
    ]


def test_what_another_task_trains_on_is_found_in_its_columns(write: Write, tmp_path: Path) -> None:
    """Prompts differ; the sentence does not. Short ones say nothing."""
    sentences = [LONG, "x", "y", "z"]
    write("glue_mrpc", "train", sentence1=sentences, sentence2=["x"] * 4, label=[0, 1, 0, 1])
    goals = {"sentence1": ["new", LONG.upper(), "x"], "sentence2": ["x"] * 3, "label": [0, 1, 0]}
    write("glue_rte", "validation", **goals)
    write("glue_rte", "train", **goals)
    found = _found(tmp_path, scored=("rte",))
    assert found == [("rte", "test", "have a text that 'mrpc' trains on", (1,))]


def test_what_cannot_be_read_is_a_finding_and_ends_nothing(write: Write, tmp_path: Path) -> None:
    (tmp_path / "glue_mrpc" / "train.parquet").write_bytes(b"PAR1")
    (tmp_path / "glue_mrpc" / "test.parquet").write_bytes(b"")
    found = _found(tmp_path)
    assert [(task, split) for task, split, _, _ in found] == [("mrpc", "train"), ("mrpc", "test")]
    assert "train.parquet: not a readable Parquet file" in found[0][2]
    assert "test.parquet: the file is empty; replace it" in found[1][2]


def test_a_finding_names_its_first_rows() -> None:
    finding = Finding("a", "train", "come a second time", tuple(range(3, 5000)))
    assert finding.line() == "a, train: 4,997 rows come a second time (row 3, 4, 5, 6, 7, ...)"
