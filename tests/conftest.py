"""Fixtures shared by all tests. No test reaches a hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Slices of real data sets beside the checkout; without them the test is skipped, saying so."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this test session, in force for the processes it starts too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RANKDRIFT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(cache: Path) -> Path:
    """The tiny random model's folder."""
    from rankdrift.models.base import resolve

    return resolve("tiny")
