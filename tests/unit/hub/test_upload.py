"""What is uploaded arrives, over nothing that was not to be replaced, at a stand-in for the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pyarrow.parquet
import pytest
import yaml
from hub import ATTRIBUTES, Hub
from transformers import PreTrainedTokenizerBase

from rankdrift import files
from rankdrift.data.dataset import load_rows
from rankdrift.data.summary import summarise
from rankdrift.errors import IntegrityError, UserError
from rankdrift.hub import upload
from rankdrift.hub.artifact import write_account
from rankdrift.hub.upload import upload_data, upload_folder
from rankdrift.spec import parse_spec

CONTENT = {"config.json", "model.safetensors", "provenance.json", "README.md"}


def sent(folder: Path, name: str = "me/x", force: bool = False, private: bool = False) -> str:
    return upload_folder(folder, name, force, private, lambda line: None)


def commits(hub: Hub) -> int:
    return len([asked for asked in hub.asked if "/commit/" in asked])


def test_prepared_rows_arrive_with_a_card_and_their_digests(
    hub: Hub, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tree = {"tasks": ["topic", "describe"], "train_limit": 5, "validation_limit": 3}
    spec = parse_spec({"data": tree})
    tables: Any = {split: load_rows(spec, split, tokenizer) for split in ("train", "validation")}  # type: ignore[arg-type]
    summaries = summarise(spec, tables)
    url = upload_data(spec, tables, summaries, "me/rows", False, False, lambda line: None)
    assert url == f"{hub.endpoint}/datasets/me/rows"
    stored = hub.repositories["dataset", "me/rows"]
    names = {f"{task}/{split}.parquet" for task in ("topic", "describe") for split in ("train", "validation")}
    assert set(stored) == names | {"README.md", "provenance.json", ATTRIBUTES}
    (tmp_path / "rows.parquet").write_bytes(stored["topic/train.parquet"])
    found = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pydict()
    table = tables["train"].tables[0]
    assert found["input_ids"] == [row.input_ids.tolist() for row in table]
    assert found["carries_loss"] == [row.carries_loss.tolist() for row in table]
    assert found["label"] == table.labels.tolist()
    assert found["index"] == table.indices.tolist()
    card = stored["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    configurations = {of["config_name"]: of["data_files"] for of in front["configs"]}
    assert configurations["describe"][1] == {"split": "validation", "path": "describe/validation.parquet"}
    assert f"| topic | train | 5 | {len(table.input_ids):,} |" in card
    account = json.loads(stored["provenance.json"])
    assert account["rows"]["topic/train.parquet"] == table.digest
    assert set(account["outputs"]) == names
    upload_data(
        spec, tables, summaries, "me/rows", False, False, lambda line: None
    )  # the same: nothing to do
    assert commits(hub) == 1


def test_a_model_arrives_with_a_card_that_says_what_its_account_says(hub: Hub, export: Path) -> None:
    (export / "optimizer.pt").write_bytes(b"not of the export")
    assert sent(export) == f"{hub.endpoint}/me/x"
    stored = hub.repositories["model", "me/x"]
    assert set(stored) == CONTENT | {ATTRIBUTES}
    assert stored["model.safetensors"] == b"weights"
    assert list(hub.large.values()) == [b"weights"]
    card = stored["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "- step: 30" in card
    assert not (export / "README.md").exists()


def test_an_adapter_names_its_base_as_others_can_have_it_and_a_card_of_one_s_own_stays(
    hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    cached = "/home/me/.cache/huggingface/hub/models--owner--base/snapshots/0123"
    config = json.dumps({"base_model_name_or_path": cached, "r": 8})
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(b"factors")
    write_account(folder, {})
    sent(folder)
    stored = hub.repositories["model", "me/x"]
    assert json.loads(stored["adapter_config.json"]) == {"base_model_name_or_path": "owner/base", "r": 8}
    front = yaml.safe_load(stored["README.md"].decode().split("---")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", "owner/base")
    outputs = json.loads(stored["provenance.json"])["outputs"]
    assert outputs["adapter_config.json"]["size"] == len(stored["adapter_config.json"])
    assert (folder / "adapter_config.json").read_text() == config
    (folder / "README.md").write_text("mine")
    sent(folder, force=True)
    assert hub.repositories["model", "me/x"]["README.md"] == b"mine"


def test_of_a_study_the_tables_arrive_without_parts_of_unfinished_ones(hub: Hub, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    files.write_table(tables / "norms.parquet", pd.DataFrame({"norm": [1.0, 2.0]}), {"inputs": {}})
    (tables / ".parts").mkdir()
    (tables / ".parts" / "norms.parquet").write_bytes(b"part")
    (tables / "left.parquet").write_bytes(b"no metadata: not complete")
    (tmp_path / "study.json").write_text("{}")
    sent(tmp_path)
    stored = hub.repositories["dataset", "me/x"]
    names = {"norms.parquet", "norms.csv", "norms.meta.json"}
    assert set(stored) == names | {"README.md", "provenance.json", ATTRIBUTES}
    assert "| norms | 2 |" in stored["README.md"].decode()
    assert set(json.loads(stored["provenance.json"])["outputs"]) == names
    assert not (tables / "provenance.json").exists()


def test_what_is_there_is_not_replaced_without_force_and_with_it_all_of_it(hub: Hub, export: Path) -> None:
    sent(export)
    hub.repositories["model", "me/x"]["old.json"] = b"{}"
    before = dict(hub.repositories["model", "me/x"])
    with pytest.raises(
        UserError, match=r"me/x: holds something else \(old.json is there and not here\); use --force"
    ):
        sent(export)
    assert hub.repositories["model", "me/x"] == before
    (export / "model.safetensors").write_bytes(b"others")
    write_account(export, {"step": 60})
    with pytest.raises(UserError, match=r"\(README.md differs and 3 more\)"):
        sent(export)
    sent(export, force=True)
    assert set(hub.repositories["model", "me/x"]) == CONTENT | {ATTRIBUTES}
    assert hub.repositories["model", "me/x"]["model.safetensors"] == b"others"


def test_the_same_again_sends_nothing(hub: Hub, export: Path) -> None:
    sent(export)
    hub.asked.clear()
    sent(export)
    assert [asked for asked in hub.asked if not asked.startswith("GET")] == []


def test_an_upload_that_ended_before_its_commit_goes_on(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub.HfApi, "create_commit", killed)
        with pytest.raises(KeyboardInterrupt):
            sent(export)
    assert set(hub.repositories["model", "me/x"]) == {ATTRIBUTES}
    sent(export)
    assert set(hub.repositories["model", "me/x"]) == CONTENT | {ATTRIBUTES}


def test_what_others_changed_since_it_was_compared_stays(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = huggingface_hub.HfApi.preupload_lfs_files

    def meanwhile(*arguments: Any, **options: Any) -> None:
        hub.repositories["model", "me/x"]["theirs.json"] = b"{}"
        send(*arguments, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", meanwhile)
    with pytest.raises(UserError, match="me/x: was changed by somebody else meanwhile"):
        sent(export)
    assert set(hub.repositories["model", "me/x"]) == {"theirs.json", ATTRIBUTES}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_damaged_on_its_way_is_noticed(hub: Hub, export: Path, name: str) -> None:
    """One that goes with the commit, and one by Git LFS."""
    hub.damaged.add(name)
    with pytest.raises(IntegrityError, match=rf"me/x: is not what was sent.*{name} differs.*--force"):
        sent(export)
    hub.damaged.clear()
    sent(export, force=True)
    assert hub.repositories["model", "me/x"]["model.safetensors"] == b"weights"


@pytest.mark.parametrize(
    ("content", "part"), [(b"weighty", "not what was written, by its checksum"), (None, "missing")]
)
def test_an_export_that_is_damaged_here_is_not_sent(
    hub: Hub, export: Path, content: bytes | None, part: str
) -> None:
    if content is None:
        (export / "model.safetensors").unlink()
        (export / "other.safetensors").write_bytes(b"")
    else:
        (export / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"model.safetensors: {part}"):
        sent(export)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("outputs", "part"),
    [
        (None, r"does not state its files \(outputs\)"),
        ({"../secret": {"size": 6, "checksum": "0"}}, r"states '../secret', which is not in the folder"),
    ],
)
def test_an_account_that_states_nothing_or_files_elsewhere_is_refused(
    hub: Hub, export: Path, outputs: Any, part: str
) -> None:
    (export.parent / "secret").write_text("secret")
    files.write_json(export / "provenance.json", {"outputs": outputs})
    with pytest.raises(IntegrityError, match=part):
        sent(export)


def test_private_is_private_or_refused(hub: Hub, export: Path) -> None:
    sent(export, "me/secret", private=True)
    assert hub.private == {("model", "me/secret")}
    sent(export, "me/open")
    with pytest.raises(UserError, match=r"me/open: is public already; make it private at http.*/settings"):
        sent(export, "me/open", private=True)


def test_progress_is_told_file_by_file_of_what_was_sent(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        upload, "byte_lines", lambda say, what: lambda done, total: told.append((done, total, len(hub.large)))
    )
    sent(export)
    stored = hub.repositories["model", "me/x"]
    size = sum(len(content) for name, content in stored.items() if name != ATTRIBUTES)
    ours = [line for line in told if line[1] == size]
    assert len(ours) == len(CONTENT)
    assert ours == sorted(ours)
    assert ours[-1] == (size, size, 1)
    assert [large for *_, large in ours].count(1) == sum(name >= "model.safetensors" for name in CONTENT)


def test_what_cannot_be_uploaded_says_why(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"not a name: is no name of a repository; give OWNER/NAME"):
        sent(export, "not a name")
    with pytest.raises(UserError, match=r"/none: no such folder"):
        sent(Path("/none"))
    with pytest.raises(
        UserError, match=r"holds nothing to upload: none of adapter_config.json \(an adapter\)"
    ):
        sent(export.parent)
    hub.is_full = True
    with pytest.raises(UserError, match=r"me/full: http.* gives no answer of use \(HfHubHTTPError: .*413"):
        sent(export, "me/full")
    assert set(hub.repositories.pop(("model", "me/full"))) == {ATTRIBUTES}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"me/x: http.* refuses the token \(401\); log in"):
        sent(export)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"me/x: http://127.0.0.1:9 gives no answer .*HF_ENDPOINT"):
        sent(export)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"me/x: HF_HUB_OFFLINE is set, so the hub is not asked; unset it"):
        sent(export)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"me/x: an upload needs a token that may write; log in \(HF_TOKEN"):
        sent(export)
    assert hub.repositories == {}
