"""The tables that are read from a run's own files: gradients, performance, training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankdrift import registry
from rankdrift.analysis.contract import Params
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.sources.recorded_gradients import COLUMNS as GRADIENT_COLUMNS
from rankdrift.analysis.sources.subjects import IDENTITY, Subject, base_subject
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout

NAMES = ("forecasts", "gradients", "performance", "training")
TABLES = {
    "forecasts": "forecasts",
    "gradients": "gradient_analysis_results",
    "performance": "performance_metrics",
    "training": "training_metrics",
}
TRAIN = {"learning_rate": 1e-3, "gradient_norm": 0.5, "tokens_per_second": 100.0, "memory_gib": 1.5}


FORECAST = {
    "predicted": {
        "stage": 2,
        "batches": {"ranks": 4},
        "peaks": {"1": 4 * 2**30, "2": 3 * 2**30},
        "least": {"1": 3 * 2**30, "2": 2**30},
        "disk": {"checkpoint": 2**29},
    },
    "measured": {"step": 20, "memory_gib": 2.5, "in_use_gib": 1.25, "checkpoint": 2**30},
}


def gradient_rows(step: int) -> list[dict]:
    statistics = {"numel": 10, "l2_norm": 0.1 * step, "mean_abs": 0.01, "std": 0.02, "zero_fraction": 0.0}
    cells = [("cell", 0, "attention", "A"), ("global", -1, "", "")]
    return [dict(zip(GRADIENT_COLUMNS, cell, strict=False)) | statistics | {"step": step} for cell in cells]


def scores(step: int, value: float | None) -> dict:
    accuracy = {"value": value, "stderr": 0.1, "higher_is_better": True, "best": 1.0}
    perplexity = {"value": 12.0, "stderr": None, "higher_is_better": False, "best": None}
    rules = {"accuracy": {"majority": 0.25, "random": None}}
    tasks = {
        "topic": {
            "role": "trained",
            "version": 1,
            "n": 24,
            "metrics": {"accuracy": accuracy},
            "baselines": rules,
        },
        "general_text": {"role": "text", "version": 1, "n": 50, "metrics": {"perplexity": perplexity}},
    }
    canary = {"largest_difference": 1e-6, "moved": False, "reason": "", "device": "cpu"}
    canary |= {"versions": {"torch": "2", "peft": "1"}, "reference_versions": {"torch": "1", "peft": "1"}}
    return {"step": step, "model": "m", "inputs": {}, "tasks": tasks, "canary": canary}


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    """A run of 20 steps, probed, logged and scored twice."""
    layout = RunLayout(tmp_path / "runs" / "lora-r8-seed1")
    layout.probes.mkdir(parents=True)
    layout.scores.mkdir()
    probed = pd.DataFrame(gradient_rows(10) + gradient_rows(20)).assign(note="not in the contract")
    probed.to_parquet(layout.probe("gradients"))
    lines = [{"step": step, "split": "train", "loss": 2.0 / step, **TRAIN} for step in (10, 20)]
    lines.append({"step": 20, "split": "validation", "loss": 0.3})
    layout.forecast.write_text(json.dumps(FORECAST))
    layout.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, value in ((10, 0.5), (20, None)):
        layout.score(step).write_text(json.dumps(scores(step, value)))
    return layout


def subject(run: RunLayout, step: int = 20) -> Subject:
    return Subject("lora-r8-seed1", "lora", 8, ("topic",), 1, step, base=Path("base"), run_dir=run.root)


def table(name: str, run: RunLayout) -> pd.DataFrame:
    analysis = registry.load("analysis", name)
    return analysis.compute(subject(run), Params(cache=run.root / "cache"))[TABLES[name]]


def test_in_a_study_steps_come_from_the_rows_not_from_the_checkpoints(run: RunLayout, tmp_path: Path):
    checkpoints = [subject(run, step) for step in (15, 20)]
    params = Params(cache=tmp_path / "cache")
    paths = run_analyses(NAMES, checkpoints, tmp_path / "tables", params, lambda *_: None)
    for path in (path for path in paths if path.stem in TABLES.values()):
        found = pd.read_parquet(path)
        assert tuple(found.columns[: len(IDENTITY)]) == IDENTITY
        assert found["step"].tolist() == table(found_in(path), run)["step"].tolist()
        assert set(found["run"]) == {"lora-r8-seed1"}


def found_in(path: Path) -> str:
    return next(name for name, stem in TABLES.items() if stem == path.stem)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_the_files_gives_no_rows(name: str, tmp_path: Path):
    compute = registry.load("analysis", name).compute
    for folder in (tmp_path, None):
        assert compute(base_subject(Path("base"), folder), Params(cache=tmp_path)) == {}


def test_gradients_are_what_the_probe_wrote(run: RunLayout):
    found = table("gradients", run)
    written = pd.DataFrame(gradient_rows(10) + gradient_rows(20))
    # before there were phases, and rows of single parameters
    expected = written.assign(phase=0, parameter="")[["step", "phase", *GRADIENT_COLUMNS]]
    pd.testing.assert_frame_equal(found, expected)
    written.assign(phase=[1] * len(gradient_rows(10)) + [2] * len(gradient_rows(20))).to_parquet(
        run.probe("gradients")
    )
    assert table("gradients", run)["phase"].unique().tolist() == [1, 2]


def test_performance_has_a_row_a_checkpoint_task_and_metric(run: RunLayout):
    found = table("performance", run).set_index(["step", "task", "metric"])
    assert len(found) == 4
    first = found.loc[(10, "topic", "accuracy")]
    assert (first["value"], first["stderr"], first["n"], first["higher_is_better"]) == (0.5, 0.1, 24, True)
    assert math.isnan(found.loc[(20, "topic", "accuracy"), "value"])
    assert math.isnan(found.loc[(10, "general_text", "perplexity"), "stderr"])
    assert found["value"].dtype == found["stderr"].dtype == np.float64


def test_scores_of_the_base_come_from_its_own_folder(tmp_path: Path):
    base = RunLayout(tmp_path / "base")
    base.scores.mkdir(parents=True)
    base.score(0).write_text(json.dumps(scores(0, 0.25)))
    analysis = registry.load("analysis", "performance")
    tables = analysis.compute(base_subject(Path("m"), base.root), Params(cache=tmp_path))
    found = tables[TABLES["performance"]]
    assert set(found["step"]) == {0}
    assert found["value"].tolist() == [0.25, 12.0]


def test_each_split_has_its_table(run: RunLayout):
    run.score(20, "validation").write_text(json.dumps(scores(20, 0.75)))
    analysis = registry.load("analysis", "performance")
    tables = analysis.compute(subject(run), Params(cache=run.root))
    test, validation = tables["performance_metrics"], tables["validation_metrics"]
    assert list(test.columns) == list(validation.columns)
    assert test[test["task"] == "topic"]["step"].tolist() == [10, 20]
    assert validation["value"].tolist() == [0.75, 12.0]
    assert tables["scoring_environments"]["split"].tolist() == ["test", "test", "validation"]


def test_roles_and_best_values_are_kept(run: RunLayout):
    found = table("performance", run).set_index(["step", "task"]).loc[10]
    assert found["role"].to_dict() == {"topic": "trained", "general_text": "text"}
    assert found.loc["topic", "best"] == 1
    assert math.isnan(found.loc["general_text", "best"])


def test_baselines_are_those_of_the_base(tmp_path: Path, run: RunLayout):
    base = RunLayout(tmp_path / "base")
    base.scores.mkdir(parents=True)
    base.score(0).write_text(json.dumps(scores(0, 0.25)))
    compute = registry.load("analysis", "performance").compute
    found = compute(base_subject(Path("m"), base.root), Params(cache=tmp_path))["baselines"]
    assert found[["task", "metric", "rule"]].to_numpy().tolist() == [
        ["topic", "accuracy", "majority"],
        ["topic", "accuracy", "random"],
    ]
    assert found["value"].iloc[0] == 0.25
    assert math.isnan(found["value"].iloc[1])
    assert "baselines" not in compute(subject(run), Params(cache=tmp_path))


def test_environments_say_whether_the_reference_moved(run: RunLayout):
    old = scores(10, 0.5)
    del old["canary"]
    run.score(10).write_text(json.dumps(old))
    found = registry.load("analysis", "performance").compute(subject(run), Params(cache=run.root))
    before, after = found["scoring_environments"].to_dict("records")
    assert (after["canary_moved"], after["canary_difference"], after["device"]) == (0, 1e-6, "cpu")
    assert (after["versions"], after["reference_versions"]) == ("torch 2, peft 1", "torch 1, peft 1")
    assert math.isnan(before["canary_moved"])
    assert before["versions"] == ""


def test_training_has_a_row_a_logged_line(run: RunLayout):
    found = table("training", run)
    assert found["loss"].tolist() == [0.2, 0.1, 0.3]
    assert found["split"].tolist() == ["train", "train", "validation"]
    assert found["gradient_norm"].isna().tolist() == [False, False, True]
    assert all(found[column].dtype == np.float64 for column in ("loss", *TRAIN))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "gradients",
            lambda run: pd.DataFrame({"step": [1], "level": ["cell"]}).to_parquet(run.probe("gradients")),
            "missing columns layer, group",
        ),
        (
            "gradients",
            lambda run: pd.DataFrame(gradient_rows(1)).assign(level="row").to_parquet(run.probe("gradients")),
            "unknown level 'row'",
        ),
        ("gradients", lambda run: run.probe("gradients").write_text("x"), "not a readable Parquet table"),
        ("performance", lambda run: run.score(10).write_text("{"), "not valid JSON"),
        ("performance", lambda run: run.score(10).write_text('{"step": 10}'), "not a score file"),
        ("performance", lambda run: run.score(10).write_text("[]"), "not a score file"),
        ("performance", lambda run: run.score(10).write_text('{"step": 9, "tasks": {}}'), "of step 9"),
        ("training", lambda run: run.metrics.write_text('{"step": 1, "loss": 2.0}\n'), "no 'split'"),
    ],
)
def test_damaged_files_are_named(name: str, damage, message: str, run: RunLayout):
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        table(name, run)
    assert str(run.root) in str(caught.value)


def test_what_was_predicted_stands_beside_what_was_measured(run: RunLayout):
    row = table("forecasts", run).iloc[0]
    # of the stage in force
    assert (row["memory_least"], row["memory_in_use"]) == (1.0, 1.25)
    assert (row["memory_predicted"], row["memory_measured"]) == (3.0, 2.5)
    assert (row["checkpoint_predicted"], row["checkpoint_measured"]) == (0.5, 1.0)
    (finding,) = registry.load("analysis", "forecasts").findings
    compared = finding.rows(table("forecasts", run)).iloc[0]
    assert compared["in_use_error"] == pytest.approx(-0.2)  # each beside what was measured of the same
    assert compared["memory_error"] == pytest.approx(0.2)
    assert compared["checkpoint_error"] == pytest.approx(-0.5)


def test_a_run_that_is_not_done_has_its_prediction_alone(run: RunLayout):
    run.forecast.write_text(json.dumps(FORECAST | {"measured": None}))
    found = table("forecasts", run)
    assert found["memory_predicted"].item() == 3.0
    assert found[["memory_in_use", "memory_measured", "checkpoint_measured"]].isna().all(axis=None)
    (finding,) = registry.load("analysis", "forecasts").findings
    assert finding.rows(found).empty
