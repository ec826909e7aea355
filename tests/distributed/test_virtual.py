"""A study's tables from sharded checkpoints are those from its exports, number for number."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from ranks import RECIPE, job, train_jobs

from rankdrift import registry
from rankdrift.cli.main import main
from rankdrift.export.consolidate import consolidate_run
from rankdrift.layout import StudyLayout

pytestmark = pytest.mark.distributed

STUDY = RECIPE | {
    "data": {"tasks": ["topic"], "train_limit": 16, "validation_limit": 8},
    "analysis": {"drift": {"rows": 6}, "workers": 1},
    "training": {
        **{"steps": 2, "global_batch": 4, "micro_batch": 2, "warmup_steps": 1, "learning_rate": 5e-3},
        **{"eval_rows": 2, "save_every": 1, "precision": "fp32"},
    },
}
LORA = ["method.name=lora", "method.rank=4"]
ARMS: dict[str, tuple[int, list[str]]] = {
    "full-z2": (2, []),
    "full-z3-bf16": (3, ["training.precision=bf16"]),
    "lora-z2": (2, LORA),
    "lora-z3-classifier": (3, [*LORA, "model.head=classifier"]),  # its head is saved whole
}
MEASURED = ("svd_analysis_results", "singular_values", "drift_metrics")
ANALYSES = [registry.load("analysis", name) for name in registry.names("analysis")]
TABLES = sorted(table for analysis in ANALYSES for table in analysis.tables)
Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyLayout:
    """Four runs on two ranks, two steps each."""
    folder = tmp_path_factory.mktemp("virtual")
    jobs = [job(folder, arm, stage, *overrides) for arm, (stage, overrides) in ARMS.items()]
    train_jobs(folder, STUDY, [(2, jobs)])
    return StudyLayout(folder / "s")


def analysed(study: StudyLayout, source: str) -> Tables:
    assert main(["analyze", "--study", str(study.root), "--source", source]) == 0
    return {name: pd.read_parquet(study.table(name)) for name in TABLES}


@pytest.fixture(scope="module")
def from_checkpoints(study: StudyLayout) -> Tables:
    """The tables, and the runs left as they were."""
    before = {path: path.stat().st_mtime_ns for path in study.runs.rglob("*")}
    tables = analysed(study, "checkpoints")
    assert {path: path.stat().st_mtime_ns for path in study.runs.rglob("*")} == before
    return tables


@pytest.fixture(scope="module")
def from_exports(study: StudyLayout, from_checkpoints: Tables) -> Tables:
    for name in study.run_names():
        consolidate_run(study.run(name))
    return analysed(study, "exports")


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_same(from_checkpoints: Tables, from_exports: Tables, name: str) -> None:
    pd.testing.assert_frame_equal(from_checkpoints[name], from_exports[name], check_exact=True)


@pytest.mark.parametrize("name", MEASURED)
def test_tables_hold_every_step_of_every_run(from_checkpoints: Tables, name: str) -> None:
    rows = from_checkpoints[name]
    tuned = rows[rows["run"] != "base"]
    expected = {(f"{arm}-seed42", step) for arm in ARMS for step in (1, 2)}
    assert set(zip(tuned["run"], tuned["step"], strict=True)) == expected


def test_every_run_moved(from_checkpoints: Tables) -> None:
    norms = from_checkpoints["svd_analysis_results"].groupby(["run", "step"])["update_norm"].max()
    assert len(norms) == 2 * len(ARMS)
    assert (norms > 0).all()


def test_nothing_is_measured_again_once_there_are_exports(study: StudyLayout, from_exports: Tables) -> None:
    parts = {path: path.stat().st_mtime_ns for path in study.tables.rglob("*.parquet")}
    analysed(study, "auto")
    assert {path: path.stat().st_mtime_ns for path in study.tables.rglob("*.parquet")} == parts


def test_checkpoints_may_be_named(study: StudyLayout, from_exports: Tables, tmp_path: Path) -> None:
    runs = ["full-z2-seed42", "lora-z2-seed42"]
    tuned = [argument for run in runs for argument in ("--tuned", str(study.run(run).checkpoint(2)))]
    assert main(["analyze", "spectra", "--base", "tiny", *tuned, "--output", str(tmp_path)]) == 0
    got = pd.read_parquet(StudyLayout(tmp_path).table("svd_analysis_results"))
    expected = from_exports["svd_analysis_results"]
    expected = expected[expected["run"].isin(runs) & (expected["step"] == 2)].reset_index(drop=True)
    unknown = ["run", "tasks", "seed", "step"]
    assert len(expected)
    pd.testing.assert_frame_equal(got.drop(columns=unknown), expected.drop(columns=unknown), check_exact=True)
