"""Rows of the hub, as the datasets library asks for them: from a stand-in, in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hub import Files, Hub, serving

from rankdrift import registry
from rankdrift.data.sources import CONVERTED

PAIRS = {"sentence1": ["It rains .", "We go ."], "sentence2": ["Rain falls .", "We stay ."], "label": [1, 0]}
MEANINGS = {"meaning_representation": ["name[The Mill]"], "human_reference": ["The Mill is a pub."]}
ARTICLES = {"article": ["It rained."], "highlights": ["Rain."], "id": ["a"]}
READ = """
import json, sys
from rankdrift import registry
from rankdrift.data.sources import load_examples
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
for name in sys.argv[1:]:
    try:
        found = load_examples(registry.load("task", name), "train", DataSpec(carve=("e2e_nlg",)))
        print(json.dumps([[example.prompt, example.target] for example in found]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def parquet(rows: dict[str, list[object]]) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


def card(configuration: str, *splits: str) -> bytes:
    files = "".join(f"  - split: {of}\n    path: {configuration}/{of}-*\n" for of in splits)
    return f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n{files}---\n".encode()


def read(hub: Hub, folder: Path, *tasks: str) -> list[object]:
    """Return what a process that may ask the hub alone reads for each task."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", READ, *tasks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_come_from_the_hub_in_every_form_it_keeps_them(hub: Hub, tmp_path: Path) -> None:
    """Parquet with a card; what a script would make, from the branch of conversions."""
    hub.repositories["dataset", "nyu-mll/glue"] = {
        "README.md": card("mrpc", "train"),
        "mrpc/train-00000-of-00001.parquet": parquet({**PAIRS, "idx": [0, 1]}),
        "mnli/train-00000-of-00001.parquet": parquet({"premise": ["wrong"]}),
    }
    made: dict[str, Files] = {
        "tuetschek/e2e_nlg": {"default/train/0000.parquet": parquet(MEANINGS)},
        "abisee/cnn_dailymail": {
            "1.0.0/train/0000.parquet": parquet({name: ["wrong"] for name in ARTICLES}),
            "3.0.0/train/0000.parquet": parquet(ARTICLES),
        },
    }
    for name, files in made.items():
        script = f"{name.rpartition('/')[2]}.py"
        hub.repositories["dataset", name] = {"README.md": b"# A data set\n", script: b"raise SystemExit(1)\n"}
        hub.branches["dataset", name, CONVERTED] = files
    pairs, meanings, articles, missing = read(hub, tmp_path, "mrpc", "e2e_nlg", "cnn_dailymail", "samsum")
    mrpc = registry.load("task", "mrpc")
    assert pairs == [[example.prompt, example.target] for example in map(mrpc.example, _rows(PAIRS))]
    assert [target for _, target in meanings] == [" The Mill is a pub."]
    assert [target for _, target in articles] == [" Rain."]
    assert missing.startswith(
        "hub dataset knkarthick/samsum, split 'train': cannot be loaded (RepositoryNotFoundError"
    )
    assert "data.root" in missing


def _rows(columns: dict[str, list[object]]) -> list[dict[str, object]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
