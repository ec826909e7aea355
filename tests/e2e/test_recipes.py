"""The studies that ship are planned as they are, for their own model and a few real rows; none is trained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

FEW_ROWS = ("data.train_limit=60", "data.validation_limit=12")
ARMS = {"similar": 6, "dissimilar": 6, "modules": 8, "glue3": 8}
"""Arms of the recipe, of all its groups; each has three seeds, but those of modules."""


@pytest.mark.parametrize("name", ARMS)
def test_a_study_that_ships_can_be_planned(
    root: Path, cache: Path, shared_data: Path, tmp_path: Path, name: str
) -> None:
    recipe = root / "launch" / "recipes" / f"{name}.yaml"
    command = [sys.executable, "-m", "rankdrift", "study", "plan", "--json", "--ranks", "2"]
    command += ["--experiment", str(recipe), f"data.root={shared_data}", f"output={tmp_path}", *FEW_ROWS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    planned = json.loads(done.stdout)
    stated = re.search(r"(\d+) cells", recipe.read_text())
    assert stated
    assert len(planned["runs"]) == int(stated[1])
    assert len({run["run"].rpartition("-seed")[0] for run in planned["runs"]}) == ARMS[name]
    assert planned["totals"]["disk"] > 2**30
    assert all(run["peaks"] for run in planned["runs"])
    assert not list(tmp_path.iterdir())
