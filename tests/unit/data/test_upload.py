"""What is uploaded arrives, at a stand-in for the hub's API on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow.parquet
import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from rankdrift.data.dataset import load_rows
from rankdrift.data.summary import summarise
from rankdrift.data.upload import upload_data, upload_model
from rankdrift.errors import UserError
from rankdrift.spec import parse_spec


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory: (kind, name) -> path -> content."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        kind, name = self._repository()
        known = (kind, name) in self.server.repositories
        self._answer({"id": name, "siblings": []} if known else {"error": "not found"}, 200 if known else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault((asked.get("type", "model"), name), {})
            place = "datasets/" if asked.get("type") == "dataset" else ""
            self._answer({"url": f"{self._endpoint}/{place}{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            stored = self.server.repositories[self._repository()]
            stored |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            kind, name = self._repository()
            place = f"{self._endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
            self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{place}/commit/0"})
        else:
            self._answer({"error": self.path}, 404)

    @property
    def _endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _repository(self) -> tuple[str, str]:
        parts = self.path.split("?")[0].split("/")  # "", api, models, owner, name, ...
        return parts[2].removesuffix("s"), "/".join(parts[3:5])

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


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
