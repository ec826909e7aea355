"""Gradient statistics per layer and group over a run, as its probe recorded them online."""

from __future__ import annotations

import pandas as pd

from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.sources.recorded_gradients import COLUMNS, read_gradients
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout

TABLE = "gradient_analysis_results"


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the table with a ``step`` column; no rows for a run that was trained without the probe."""
    if subject.run_dir is None:
        return {}
    path = RunLayout(subject.run_dir).probe("gradients")
    return {TABLE: read_gradients(path)} if path.exists() else {}


ANALYSIS = Analysis(name="gradients", columns={TABLE: COLUMNS}, per="run", compute=compute)
