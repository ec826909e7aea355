"""The examples of docs/api.md run, one after the other, and give the tables they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_examples_of_the_docs_run(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for block in BLOCK.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8")):
        exec(block, known)  # our own documentation
    log, scores, tables = known["log"], known["scores"], known["tables"]
    assert log[log["split"] == "train"]["step"].tolist() == [1, 2, 3, 4]
    topic = scores[scores["task"] == "topic"].set_index("metric")
    assert topic.loc["accuracy", "n"] == 10
    assert 0 <= topic.loc["accuracy", "value"] <= 1
    spectra = tables["svd_analysis_results"]
    assert (spectra["update_norm"].dropna() >= 0).all()
    assert "step" in capsys.readouterr().out


def test_there_is_nothing_else_to_import() -> None:
    import rankdrift

    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rankdrift.trian  # noqa: B018
