"""A study's folder around tables that were made up (``make_tables`` of tests/unit/analysis/conftest.py)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankdrift import files
from rankdrift.analysis.sources.subjects import IDENTITY
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]


def write_study(root: Path, tables: Tables) -> StudyLayout:
    """A study's folder with tables and, for each run, the JSON files of a finished training."""
    study = StudyLayout(root)
    for name, table in tables.items():
        meanings = {column: f"what {column} means" for column in table}
        parts = {} if set(IDENTITY) <= set(table) else {"study": {}}  # a table of the whole study
        files.write_table(
            study.table(name), table, {"analysis": "made up", "columns": meanings, "parts": parts}, csv=False
        )
    for run in sorted(set(tables["performance_metrics"]["run"]) - {"base"}):
        layout = study.run(run)
        method = {"name": run.split("-")[0]}
        files.write_json(layout.spec, {"model": {"name": "tiny"}, "method": method, "seed": 42})
        files.write_json(layout.environment, {"python": "3.11", "time": "2026-01-01T10:00:00Z"})
        files.write_json(
            layout.status, {"state": "finished", "training_seconds": 124.6, "trainable_parameters": 4096}
        )
        files.write_json(layout.ds_config, {"zero_optimization": {"stage": 2}})
    return study
