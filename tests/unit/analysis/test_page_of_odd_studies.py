"""The page of studies that lack what a page wants to show: it opens, and says what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_study import write_study

from rankdrift import files
from rankdrift.analysis.report.build import as_html
from rankdrift.analysis.report.content import compose
from rankdrift.analysis.report.markdown import as_markdown
from rankdrift.analysis.report.study import read_study
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
Make = Callable[..., Tables]
TWO = (("lora", 8, 42), ("full", 0, 42))


def page_of(study: StudyLayout) -> str:
    """Everything but the pictures, which have tests of their own; what scripts read is JSON."""
    content = compose(read_study(study), [], [])
    page = as_html(content)
    assert as_markdown(content)
    for state in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL):
        json.loads(state, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).lower().split()
    return page


def test_one_run_of_one_seed(tmp_path: Path, make_tables: Make) -> None:
    page = page_of(write_study(tmp_path / "one", make_tables(TWO[:1], [4], 2)))
    assert "lora-r8 was trained: accuracy on topic" in page
    assert "No interval over seeds can be given" in page
    assert "1 arm (lora-r8), 1 seed (42)" in page


def test_no_scores(tmp_path: Path, make_tables: Make) -> None:
    tables = make_tables(TWO, [4, 8], 2)
    study = write_study(tmp_path / "unscored", tables)
    for path in study.tables.glob("*"):
        if path.name.split(".")[0] in ("performance_metrics", "learning_forgetting", "item_contrasts"):
            path.unlink()
    page = page_of(study)
    assert "learns most" not in page
    assert 'id="explore"' in page  # of weights there is something


def test_values_that_are_no_numbers(tmp_path: Path, make_tables: Make) -> None:
    tables = make_tables(TWO, [4, 8], 2)
    for table in tables.values():
        for column in table.select_dtypes("float"):
            table[column] = np.nan
    page = page_of(write_study(tmp_path / "undefined", tables))
    assert "learns most" not in page
    assert "2 arms (full, lora-r8)" in page


def test_one_run_diverged(tmp_path: Path, make_tables: Make) -> None:
    tables = make_tables(TWO, [4, 8], 2)
    for name in ("performance_metrics", "svd_analysis_results", "drift_metrics"):
        table = tables[name]
        numbers = table.select_dtypes("float").columns
        table.loc[table["run"] == "full-seed42", numbers] = np.nan
    page = page_of(write_study(tmp_path / "diverged", tables))
    assert "lora-r8" in page.split("In short")[1][:400]


def test_cells_that_failed_are_named(tmp_path: Path, make_tables: Make) -> None:
    study = write_study(tmp_path / "failed", make_tables(TWO[:1], [4], 2))
    cell = {"run": "full-seed42", "name": "full-seed42"}
    files.write_json(study.cells, [{"run": "lora-r8-seed42", "name": "lora-r8-seed42"}, cell])
    files.write_json(study.run("lora-r8-seed42").cell, {"state": "done"})
    files.write_json(study.run("full-seed42").cell, {"state": "failed", "error": "out of memory"})
    page = page_of(study)
    assert "1: full-seed42 (failed: out of memory)" in page


def test_folders_from_anywhere(tmp_path: Path, make_tables: Make) -> None:
    """Without runs: no seed, no score, no training."""
    tables = make_tables(TWO, [8], 2)
    weights = {name: tables[name] for name in ("svd_analysis_results", "singular_values", "subspace_drift")}
    study = write_study(
        tmp_path / "foreign", weights | {"performance_metrics": tables["performance_metrics"]}
    )
    for path in [*study.tables.glob("performance_metrics*"), study.root / "runs"]:
        path.rename(tmp_path / path.name)
    page = page_of(study)
    assert "2 arms (full, lora-r8) on topic; measured at 1 step (8)" in page
    assert "seed (42)" not in page
    assert "learns most" not in page


def test_tables_without_a_row(tmp_path: Path, make_tables: Make) -> None:
    tables = make_tables(TWO, [4], 2)
    study = write_study(tmp_path / "empty", tables)
    for name, table in tables.items():
        files.write_parquet(study.table(name), table.head(0))
    page = page_of(study)
    assert "0 arms" in page
    assert "No checkpoint of a trained run has been measured" in page


def test_a_thousand_runs(tmp_path: Path, make_tables: Make) -> None:
    runs = tuple(("lora", rank, seed) for rank in range(1, 201) for seed in range(5))
    tables = make_tables(runs[:5], [4], 1)
    scores = pd.concat(
        [
            tables["performance_metrics"].assign(
                run=lambda t, r=rank: t["run"].str.replace("lora-r1-", f"lora-r{r}-"), rank=rank
            )
            for rank in range(1, 201)
        ],
        ignore_index=True,
    )
    scores = scores[(scores["run"] != "base") | (scores["rank"] == 1)]
    page = page_of(write_study(tmp_path / "thousand", {"performance_metrics": scores}))
    assert "200 arms" in page
    assert len(page) < 5_000_000
