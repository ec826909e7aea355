"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path.relative_to(ROOT)
    for folder in ("src/rankdrift", "analysis")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_examples_hold(path: Path) -> None:
    parts = path.with_suffix("").parts
    name = ".".join(parts[1:] if parts[0] == "src" else ("rankdrift", *parts))
    module = importlib.import_module(name.removesuffix(".__init__"))
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
