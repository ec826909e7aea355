"""What is uploaded arrives, at a stand-in for the hub's API on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow.parquet
import pytest
import yaml
from hub import Hub, serving
from transformers import PreTrainedTokenizerBase

from rankdrift.data.dataset import load_rows
from rankdrift.data.summary import summarise
from rankdrift.data.upload import upload_data, upload_model
from rankdrift.errors import UserError
from rankdrift.spec import parse_spec


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # large files go by Git LFS: Xet's storage is no protocol that a stand-in could speak
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


def _model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "provenance.json").write_text('{"step": 30, "base": "owner/base", "files": {}}')
    return folder


def test_prepared_rows_arrive_with_a_card(
    hub: Hub, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tree = {"tasks": ["topic", "describe"], "train_limit": 5, "validation_limit": 3}
    spec = parse_spec({"data": tree})
    tables: Any = {split: load_rows(spec, split, tokenizer) for split in ("train", "validation")}  # type: ignore[arg-type]
    assert upload_data(spec, tables, summarise(spec, tables), "me/rows").endswith("/commit/0")
    stored = hub.repositories["dataset", "me/rows"]
    names = {f"{task}/{split}.parquet" for task in ("topic", "describe") for split in ("train", "validation")}
    assert set(stored) == names | {"README.md"}
    (tmp_path / "rows.parquet").write_bytes(stored["topic/train.parquet"])
    rows = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    table = tables["train"].tables[0]
    assert [row["input_ids"] for row in rows] == [row.input_ids.tolist() for row in table]
    assert [row["carries_loss"] for row in rows] == [row.carries_loss.tolist() for row in table]
    assert [row["label"] for row in rows] == table.labels.tolist()
    _, front, text = stored["README.md"].decode().split("---", 2)
    configurations = {of["config_name"]: of["data_files"] for of in yaml.safe_load(front)["configs"]}
    assert configurations["describe"][1] == {"split": "validation", "path": "describe/validation.parquet"}
    assert f"| topic | train | 5 | {len(table.input_ids):,} |" in text


def test_a_model_arrives_with_a_card_that_says_what_its_account_says(hub: Hub, tmp_path: Path) -> None:
    folder = _model(tmp_path / "export")
    upload_model(folder, "me/model")
    stored = hub.repositories["model", "me/model"]
    assert stored["model.safetensors"] == b"weights"
    assert list(hub.large.values()) == [b"weights"]
    card = stored["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "- step: 30" in card
    assert not (folder / "README.md").exists()


def test_an_adapter_names_its_base_and_a_card_of_one_s_own_stays(hub: Hub, tmp_path: Path) -> None:
    folder = _model(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    upload_model(folder, "me/adapter")
    front = yaml.safe_load(hub.repositories["model", "me/adapter"]["README.md"].decode().split("---")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", "owner/base")
    (folder / "README.md").write_text("mine")
    upload_model(folder, "me/adapter", force=True)
    assert hub.repositories["model", "me/adapter"]["README.md"] == b"mine"


def test_what_is_there_is_not_overwritten_without_force(hub: Hub, tmp_path: Path) -> None:
    folder = _model(tmp_path / "export")
    upload_model(folder, "me/model")
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match=r"me/model: this model repository is there; use --force"):
        upload_model(folder, "me/model")
    assert hub.repositories["model", "me/model"]["model.safetensors"] == b"weights"
    upload_model(folder, "me/model", force=True)
    assert hub.repositories["model", "me/model"]["model.safetensors"] == b"others"


def test_what_cannot_be_uploaded_says_why(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _model(tmp_path / "export")
    with pytest.raises(UserError, match=r"not a name: cannot be uploaded .*HFValidationError"):
        upload_model(folder, "not a name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"me/x: cannot be uploaded to http://127.0.0.1:9 .*HF_ENDPOINT"):
        upload_model(folder, "me/x")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"neither config.json nor adapter_config.json in it"):
        upload_model(folder, "me/x")
