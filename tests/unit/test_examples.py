"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]
FILES = [
    path.relative_to(root)
    for root in (SOURCE / "src", SOURCE)
    for path in sorted((root / ("rankdrift" if root.name == "src" else "analysis")).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8") and not ("analysis" in path.parts and root.name == "src")
]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_examples_hold(path: Path) -> None:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name if name.startswith("rankdrift") else f"rankdrift.{name}")
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
