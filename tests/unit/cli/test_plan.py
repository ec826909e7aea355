"""What a run will take is said before it is launched, and nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from rankdrift.cli.main import main
from rankdrift.data.dataset import load_rows
from rankdrift.models.base import load_tokenizer
from rankdrift.planning.forecast import Trial
from rankdrift.spec import load_recipe, parse_spec
from rankdrift.studies.trial import shortened

SMALL = ["model.name=tiny", "data.train_limit=60", "data.validation_limit=12", "training.steps=12"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", "--json", "--ranks", "2", *arguments, *SMALL]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_in_numbers(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = plan(capsys, "--arm", "full")["runs"]
    spec = load_recipe(None, SMALL).spec("full")
    rows = load_rows(spec, "train", load_tokenizer(tiny))
    batches = run["batches"]
    assert (batches["global_batch"], batches["ranks"], batches["rows"]) == (16, 2, len(rows))
    assert batches["micro_batch"] * batches["accumulation"] == 8
    assert batches["epochs"] == pytest.approx(12 * 16 / len(rows))
    # epochs of all rows are whole: 12 steps of 16 rows are 192 of 60, three times all and 12 rows more
    lengths = np.array([len(row.input_ids) for row in rows])
    assert 3 * lengths.sum() < batches["tokens"] < 4 * lengths.sum()
    count = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert (run["size"]["total"], run["size"]["trained"]) == (count, count)
    assert run["stage"] == 2
    assert set(run["stages"]) == {"0", "1", "2", "3"}
    assert run["peaks"]["2"] == run["baseline"] + run["stages"]["2"]["peak"]
    assert run["disk"]["checkpoint"] == run["size"]["total"] * (4 + 4 + 8)  # weights, masters, moments
    assert run["disk"]["total"] == 2 * run["disk"]["checkpoint"] + 2 * run["size"]["total"] * 4
    assert run["hours"] is None
    assert run["settings"] == spec.as_dict()


def test_arms_and_seeds_are_rows_that_add_up(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "study: s\narms:\n  a: {method: {name: lora}}\n  b: {method: {name: full}}\nseeds: [1, 2]\n"
    )
    found = plan(capsys, "--experiment", str(recipe))
    assert [run["run"] for run in found["runs"]] == ["a-seed1", "b-seed1", "a-seed2", "b-seed2"]
    assert found["totals"]["tokens"] == sum(run["batches"]["tokens"] for run in found["runs"])
    assert found["totals"]["disk"] == sum(run["disk"]["total"] for run in found["runs"])
    assert main(["plan", "--experiment", str(recipe), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "b-seed2" in printed
    assert "4 runs" in printed


def test_hours_are_those_of_steps_that_were_tried(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankdrift.studies.study_plan.trial", lambda *_: Trial(600.0, 2**30, in_use=2**29))
    found = plan(capsys, "--arm", "full", "--measure")
    assert found["runs"][0]["hours"] == found["totals"]["hours"] == 2.0  # 12 steps of ten minutes
    assert main(["plan", "--arm", "full", "--measure", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "0.50 GiB measured" in printed  # beside what is in use, as predicted
    assert "1.00 GiB measured" in printed


def test_what_is_tried_is_the_run_cut_short(tmp_path: Path) -> None:
    settings = {"steps": 500, "save_steps": [300], "warmup_ratio": 0.1, "keep_last": 2, "global_batch": 32}
    method = {"name": "lora", "schedule": "both->mlp"}
    short = shortened(parse_spec({"training": settings, "method": method}), tmp_path)
    assert (short.training.steps, short.training.warmup, short.training.save_steps) == (6, 0, ())
    assert (short.training.global_batch, short.method.schedule, short.output) == (32, (), str(tmp_path))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_dry_run_trains_and_writes_nothing(
    rank: str,
    root: Path,
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "4", "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "output"
    config = ["--config", str(root / "ds_configs" / "zero3.json")]
    assert main(["train", *config, "--dry-run", *SMALL, f"output={output}"]) == 0
    printed = capsys.readouterr().out
    assert ("over 4 ranks" in printed) == (rank == "0")  # one speaks for all
    assert ("ZeRO-3 (this run)" in printed) == (rank == "0")
    assert not output.exists()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--arm", "ful"], "unknown arm 'ful': did you mean 'full'?"),
        (["--ranks", "0"], "0 ranks: a run has at least one rank"),
        (["--ranks", "3", "model.name=tiny"], "training.global_batch=16 cannot be shared by 3 ranks"),
        (["--config", "none.json", "model.name=tiny"], "none.json"),
        (["training.stepz=3"], "unknown key 'training.stepz' (value 3): did you mean 'steps'?"),
    ],
)
def test_what_training_would_refuse_is_refused(
    arguments: list[str], part: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    message = capsys.readouterr().err
    assert part in message
    assert "Traceback" not in message
