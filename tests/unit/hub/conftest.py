"""A hub on this machine that the library asks, logged in, with a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub, be_asked, serving
from made_tokenizers import made_tokenizer
from transformers import PreTrainedTokenizerBase

from rankdrift.hub.artifact import write_account


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving() as server:
        be_asked(server, tmp_path_factory.mktemp("hub"), monkeypatch)
        yield server


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """The folder of a model with an account, as consolidation leaves it."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_account(folder, {"step": 30, "base": "owner/base"})
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return made_tokenizer("bos")
