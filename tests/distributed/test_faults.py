"""Saves whose every call to the operating system fails once, and runs killed at random instants.

Both run in processes of their own; what they assert is written there. ``make faults`` kills 200 times.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import run_forked
from ranks import CONFIGS, HERE, run_ranks

pytestmark = pytest.mark.distributed

KILLS = 8


def test_a_save_that_fails_anywhere_says_so_and_loses_nothing(tmp_path: Path) -> None:
    stages = ("zero0", "zero3")
    configs = [str(CONFIGS / f"{stage}.json") for stage in stages]
    run_ranks(2, HERE / "faulty_saves.py", str(tmp_path), *configs)
    failures = json.loads((tmp_path / "failures.json").read_text())
    # one failure for each call: some twenty writes a file (one file at stage 0), flushes, renames ...
    assert all(failures[stage] > 50 for stage in stages)


def test_a_save_of_machines_without_a_common_folder_that_fails_anywhere_leaves_the_step_before(
    tmp_path: Path,
) -> None:
    run_ranks(2, HERE / "faulty_parts.py", str(tmp_path), str(CONFIGS / "zero2.json"))
    assert json.loads((tmp_path / "failures.json").read_text()) > 30


def test_killed_runs_lose_nothing(tiny: Path, tmp_path: Path) -> None:
    options = ["--kills", str(KILLS), "--config", str(CONFIGS / "zero2.json"), "--method", "lora"]
    status, said = run_forked(HERE / "kill_campaign.py", str(tmp_path), *options, timeout=400)
    assert status == 0, said[-6000:]
    print(said)  # the seed, should a later assertion fail
    assert f"{KILLS} kills" in said
    assert "every newest checkpoint verified and was resumed bit-equal" in said
