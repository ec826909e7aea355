"""What every analysis must do: declare its columns, give them, and give them again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankdrift import files, registry
from rankdrift.analysis import engine
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.sources.subjects import IDENTITY, Subject, base_subject
from rankdrift.layout import RunLayout
from rankdrift.spec import parse_spec

ANALYSES = registry.names("analysis")
NOTHING_HERE = {
    "variants",
    "vectors",
    "probes",
}  # the run has no edited models, vectors and further probes, as a study of one run no pairs
NO_SUMS = ("group_norms", "layer_norms")
"""Tables of levels that the run's gradients do not have."""
GRADIENTS = {"level": "cell", "layer": 0, "group": "mlp", "factor": "A", "numel": 8}
STATISTICS = {"l2_norm": 1.0, "mean_abs": 0.1, "std": 0.2, "zero_fraction": 0.0}


def write_run(root: Path, base: Path) -> None:
    """Write a run's small files as docs/architecture.md describes them."""
    layout = RunLayout(root)
    layout.probes.mkdir(parents=True)
    line = {"step": 1, "split": "train", "loss": 2.0, "learning_rate": 1e-4, "gradient_norm": 1.0}
    layout.metrics.write_text(json.dumps(line | {"tokens_per_second": 10.0, "memory_gib": 1.0}) + "\n")
    predicted = {"stage": 2, "batches": {"ranks": 1}, "disk": {"checkpoint": 2**20}}
    predicted |= {"peaks": {"2": 2**30}, "least": {"2": 2**29}}
    files.write_json(layout.forecast, {"predicted": predicted, "measured": None})
    pd.DataFrame([{"step": 1} | GRADIENTS | STATISTICS]).to_parquet(layout.probe("gradients"))
    metric = {"value": 0.5, "stderr": 0.1, "higher_is_better": True, "best": 1.0}
    task = {"role": "trained", "version": 1, "n": 4, "metrics": {"accuracy": metric}}
    tasks = {"topic": task | {"baselines": {"accuracy": {"majority": 0.25}}}}
    base_run = RunLayout(root.parent / "base")
    for scored, step, split in ((layout, 10, "test"), (layout, 10, "validation"), (base_run, 0, "test")):
        score = {"step": step, "model": str(base), "inputs": {}, "tasks": tasks}
        files.write_json(scored.score(step, split), score)


@pytest.fixture
def subjects(models: Any, lora: Path, tmp_path: Path) -> list[Subject]:
    write_run(tmp_path / "run", models.base)
    identity = ("run", "lora", 4, ("topic",), 0)
    return [
        base_subject(models.base, tmp_path / "base"),
        Subject(*identity, 10, models.base, lora, tmp_path / "run"),
    ]


@pytest.fixture
def params(tmp_path: Path) -> Params:
    rows = pd.DataFrame({"input_ids": [[i, i + 1, 5] for i in range(12)]})
    rows.to_parquet(tmp_path / "inputs.parquet")
    tasks = rows.assign(task=["topic", "other"] * 6, labels=rows["input_ids"])
    tasks.to_parquet(tmp_path / "tasks.parquet")
    return Params(
        cache=tmp_path / "cache",
        drift_inputs=tmp_path / "inputs.parquet",
        gradient_inputs=tmp_path / "tasks.parquet",
        workers=1,
    )


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_is_complete(name: str) -> None:
    analysis: Analysis = registry.load("analysis", name)
    assert analysis.name == name
    if analysis.settings:
        assert parse_spec({"analysis": {name: analysis.settings().model_dump()}})
    assert analysis.parquet_only <= set(analysis.tables)
    for columns in analysis.columns.values():
        assert all(meaning for meaning in columns.values())
        assert analysis.per == "study" or not set(columns) & set(IDENTITY)


def test_no_two_analyses_write_one_table() -> None:
    tables = [table for name in ANALYSES for table in registry.load("analysis", name).tables]
    assert len(set(tables)) == len(tables)


@pytest.mark.parametrize("name", ANALYSES)
def test_declared_columns_come_out_twice_the_same(
    name: str, subjects: list[Subject], params: Params, tmp_path: Path
) -> None:
    analysis = registry.load("analysis", name)
    first, again = (
        engine.run_analyses(
            [name],
            subjects,
            tmp_path / str(workers),
            dataclasses.replace(params, workers=workers),
            lambda *_: None,
        )
        for workers in (1, 2)
    )
    assert [path.stem for path in first] == list(analysis.tables)
    for one, other in zip(first, again, strict=True):
        table = pd.read_parquet(one)
        identity = () if analysis.per == "study" else IDENTITY  # those of a study bring their own
        assert list(table.columns) == [*identity, *analysis.columns[one.stem]]
        assert len(table) or analysis.per == "study" or name in NOTHING_HERE or one.stem in NO_SUMS
        pd.testing.assert_frame_equal(table, pd.read_parquet(other), check_exact=True)
