"""rankdrift fetch and upload: what a command line means, exit codes, one message for a mistake."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hub import Hub, be_asked, serving

from rankdrift.cli.main import main
from rankdrift.layout import cache_folder

PAIRS = {"sentence1": ["It rains .", "We go ."], "sentence2": ["Rain falls .", "We stay ."], "label": [1, 0]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving() as server:
        be_asked(server, tmp_path_factory.mktemp("hub"), monkeypatch)
        yield server


def of_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_base_model_of_the_hub_is_where_training_finds_it(
    hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["model", "owner/base"] = of_folder(tiny)
    assert main(["fetch", "owner/base"]) == 0
    out, err = capsys.readouterr()
    folder = Path(out.strip().removeprefix("base model owner/base: "))
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    count = len(of_folder(tiny)) - len(list(tiny.glob("*.md")))
    assert f"owner/base: {count} files are as the hub states them" in err
    hub.server_close()  # it needs no hub any more, and says that it was not compared
    assert main(["fetch", "owner/base"]) == 0
    assert "not compared with the hub: owner/base: " in capsys.readouterr().err


def test_a_base_model_that_is_damaged_in_the_cache_is_noticed_and_fetched_again(
    hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["model", "owner/base"] = of_folder(tiny)
    hub.damaged.add("model.safetensors")
    assert main(["fetch", "owner/base"]) == 3
    message = capsys.readouterr().err
    assert "rankdrift fetch: error: owner/base: model.safetensors in " in message
    assert "is not what the hub states" in message
    hub.damaged.clear()
    assert main(["fetch", "owner/base"]) == 0


def test_models_and_tasks_are_told_apart_and_groups_are_their_tasks(
    shared_data: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "tiny", "topic"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"base model tiny: {tiny}"
    assert said[1].startswith("task topic: train ")
    assert main(["fetch", "similar", f"data.root={shared_data}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["task sst2", "task mnli", "task qqp"]


def test_without_a_name_it_is_what_the_recipe_takes(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "model.name=tiny", "data.tasks=[topic]", "scoring.tasks=[topic,describe]"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["base model tiny", "task topic", "task describe"]


def pairs(first: int) -> bytes:
    """Rows of mrpc as Parquet, numbered from one on."""
    buffer = io.BytesIO()
    pd.DataFrame({**PAIRS, "idx": [first, first + 1]}).to_parquet(buffer)
    return buffer.getvalue()


def of_task(hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    """Fetch a task's data in a process that may ask the hub alone."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "rankdrift", "fetch", "mrpc"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["mrpc/train-00000-of-00001.parquet", "README.md"])
def test_data_of_a_task_are_fetched_and_compared_and_made_again_if_they_were_damaged(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    """Damaged so that they cannot be read, and so that they can."""
    splits = ("train", "validation", "test")
    listed = "".join(f"  - split: {of}\n    path: mrpc/{of}-*\n" for of in splits)
    hub.repositories["dataset", "nyu-mll/glue"] = {
        "README.md": f"---\nconfigs:\n- config_name: mrpc\n  data_files:\n{listed}---\n# Pairs\n".encode(),
        **{f"mrpc/{of}-00000-of-00001.parquet": pairs(first) for first, of in enumerate(splits)},
    }
    hub.damaged.add(name)
    done = of_task(hub, tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"nyu-mll/glue: {name} in " in done.stderr
    assert "Traceback" not in done.stderr
    hub.damaged.clear()
    done = of_task(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Generating train split" in done.stderr
    assert done.stdout == "task mrpc: train 2 rows, validation 2 rows, test 2 rows\n"
    assert "task mrpc: 4 cached files of nyu-mll/glue are as the hub states them" in done.stderr


def test_data_go_up_and_come_back(
    hub: Hub, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model.name=tiny", "data.tasks=[topic]", "data.train_limit=5"]
    assert main(["upload", "data", "me/rows", *small, "--private", "--split", "train"]) == 0
    assert capsys.readouterr().out == f"{hub.endpoint}/datasets/me/rows\n"
    assert hub.private == {("dataset", "me/rows")}
    assert main(["fetch", "me/rows", "--to", str(tmp_path / "rows")]) == 0
    assert len(pd.read_parquet(tmp_path / "rows" / "topic" / "train.parquet")) == 5
    assert main(["upload", str(tiny), "me/rows"]) == 0  # a model of that name is another repository
    assert main(["upload", "data", "me/rows", *small, "data.train_limit=6", "--split", "train"]) == 2
    assert "me/rows: holds something else (README.md differs and " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["fetch", "ssst2"], "unknown name 'ssst2': did you mean 'sst2'? Known: "),
        (["fetch", "tiny", "--force"], "--force replaces what a folder holds; name it with --to"),
        (["fetch", "a/b", "c/d", "--to", "x"], "--to x: takes one artifact, got a/b, c/d; give OWNER/NAME"),
        (["fetch", "--to", "x"], "--to x: takes one artifact, got none"),
        (["fetch", "me/none"], "base model 'me/none': cannot be had from the hub"),
        (["fetch", "me/adapter"], "me/adapter: holds an adapter, no base model; say with --to FOLDER where"),
        (["fetch", "mine.yaml"], "mine.yaml: "),
        (["fetch", "none.gguf"], "no such .gguf file"),
        (["fetch", "me/none", "--to", "x"], "me/none: no such repository at http"),
        (["upload", "/none", "me/x"], "/none: no such folder"),
        (["upload", "folder", "me/x", "data.tasks=[topic]"], "folder: a folder has no settings and splits"),
        (["upload", "data", "me/x", "data.tasks=[mrcp]"], "unknown task 'mrcp': did you mean 'mrpc'?"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], part: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["model", "me/adapter"] = {"adapter_config.json": b"{}"}
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"rankdrift {arguments[0]}: error: " in message
    assert part in message
    assert "Traceback" not in message


def test_an_upload_without_a_token_prepares_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path))
    assert main(["upload", "data", "me/x", "model.name=tiny", "data.tasks=[topic]"]) == 2
    assert "me/x: an upload needs a token that may write; log in" in capsys.readouterr().err
    assert not (cache_folder() / "data").exists()
