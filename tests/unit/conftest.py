"""Fixtures that unit tests of several packages share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache: Path) -> None:
    """What a test prepares goes into the session's cache, also where it does not ask for one."""


@pytest.fixture(scope="session")
def zero(root: Path) -> ModuleType:
    """The functions that write ZeRO checkpoints of each layout by hand, of the checkpoint reader's tests."""
    spec = importlib.util.spec_from_file_location("zero", root / "tests/unit/checkpoints/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
