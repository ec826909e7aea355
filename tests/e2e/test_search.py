"""A small search of a real model, as a user runs it, and the study that reads what it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rankdrift import files
from rankdrift.layout import StudyLayout
from rankdrift.studies.search.ledger import read_group

pytestmark = pytest.mark.e2e

RATE = "training.learning_rate"
RECIPE = {
    "study": "s",
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic"], "train_limit": 40, "validation_limit": 8},
    "training": {"steps": 4, "global_batch": 4, "warmup_steps": 0, "eval_rows": 8},
    "search": {"trials": 3, "at_once": 2, "eval_every": 2},
    "arms": {"full": {"method": {"name": "full"}}, "lora": {"method": {"name": "lora", "rank": 2}}},
    "seeds": [42],
}


def rankdrift(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rankdrift", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_a_search_of_two_arms_and_the_study_that_reads_it(cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"output": str(tmp_path)}))
    given = ("--experiment", recipe, "--ranks", 1)
    said = rankdrift("search", *given).stdout
    study = StudyLayout(tmp_path / "s")
    record = read_group(study)
    found = yaml.safe_load(study.searched.read_text())["groups"][""]
    for arm, rate in (("full", 2e-5), ("lora", 2e-4)):
        trials = record.arms[arm].trials
        assert [(trial.state, trial.steps) for trial in trials] == [("done", 4)] * 3
        assert sorted(trials[0].values) == [0, 2, 4]
        assert trials[0].settings == {RATE: pytest.approx(rate)}
        assert len({trial.settings[RATE] for trial in trials}) == 3
        best = min(trials, key=lambda trial: trial.value or 0)
        assert found[arm]["settings"] == best.settings
        assert found[arm]["value"] == best.value
        run = StudyLayout(study.root / "search").run(f"{arm}-trial000-seed7")
        logged = [row["loss"] for row in files.read_jsonl(run.metrics) if row["split"] == "validation"]
        assert trials[0].value == logged[-1]
        assert not run.checkpoints.exists()
    assert "found: " in said
    before = study.trials.stat().st_mtime_ns
    rankdrift("search", *given)
    assert study.trials.stat().st_mtime_ns == before
    planned = rankdrift("study", "plan", *given)
    assert f"as a search found them, {study.searched}" in planned.stderr
