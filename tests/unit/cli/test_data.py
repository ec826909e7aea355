"""rankdrift data: exit codes, what is printed, and no traceback where the data are bad."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from rankdrift.cli.main import main

ROWS = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "label": [0, 1, 1]}


@pytest.fixture
def root(tmp_path: Path, tiny: Path) -> Path:
    folder = tmp_path / "glue_mrpc"
    folder.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        texts = [f"{text}{number}" for text in ROWS["sentence1"]]
        pd.DataFrame(ROWS | {"sentence1": texts}).to_parquet(folder / f"{split}.parquet")
    return tmp_path


def overrides(root: Path) -> list[str]:
    return ["model.name=tiny", "data.tasks=[mrpc]", f"data.root={root}"]


def test_rows_are_prepared_and_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "--split", "train", *overrides(root)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("mrpc, train: 3 rows, ")
    assert said[1].startswith("prepared in ")
    assert len(said) == 2


def test_summary_is_a_table_json_and_a_picture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "summary", *overrides(root)]) == 0
    assert "mrpc  train" in capsys.readouterr().out
    picture = root / "picture.png"
    assert main(["data", "summary", "--json", "--picture", str(picture), *overrides(root)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(of["task"], of["split"], of["rows"]) for of in found] == [
        ("mrpc", "train", 3),
        ("mrpc", "validation", 3),
    ]
    assert picture.stat().st_size > 1000


def test_check_is_0_without_findings_and_1_with(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", *overrides(root)]) == 0
    assert capsys.readouterr().out == "nothing is wrong\n"
    (root / "glue_mrpc" / "train.parquet").write_bytes(b"PAR1")
    assert main(["data", "check", *overrides(root)]) == 1
    assert "mrpc, train: cannot be read: " in capsys.readouterr().out
    assert main(["data", "check", "--json", *overrides(root)]) == 1
    assert json.loads(capsys.readouterr().out)[0]["split"] == "train"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["prepare", "data.tasks=[mrcp]"], "unknown task 'mrcp': did you mean 'mrpc'?"),
        (["prepare", "model.name=tiny", "data.tasks=[mrpc]", "data.root=/none"], "/none: no such folder"),
        (["summary", "--experiment", "none.yaml"], "none.yaml: no such recipe"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], part: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rankdrift data: error: ")
    assert part in message
