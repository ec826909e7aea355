"""Losses, learning rate, gradient norm, speed and memory over a run, as it logged them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout

TABLE = "training_metrics"
COLUMNS = {
    "split": "train (the step's global batch), validation (mean of the tasks), train/TASK or validation/TASK",
    "loss": "nats a target token",
    "learning_rate": "of this step; NaN for validation",
    "gradient_norm": "global Euclidean norm before clipping; NaN for validation",
    "tokens_per_second": "tokens trained on a second, over all ranks; NaN for validation",
    "memory_gib": "peak memory of rank 0, GiB; NaN for validation",
    "tokens": "of the task, trained on so far; NaN but for train/TASK",
    "rows": "of the task, trained on so far; NaN but for train/TASK",
}
REQUIRED = ("step", "split", "loss")


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the table with a ``step`` column; no rows where nothing was trained (the base model)."""
    path = None if subject.run_dir is None else RunLayout(subject.run_dir).metrics
    lines = files.read_jsonl(path) if path else []
    if path is None or not lines:
        return {}
    table = pd.DataFrame(lines)
    _require(path, table)
    return {TABLE: _with_numbers(table.reindex(columns=["step", *COLUMNS]))}


def _require(path: Path, table: pd.DataFrame) -> None:
    for column in REQUIRED:
        if column not in table.columns or table[column].isna().any():
            raise UserError(f"{path}: a line has no '{column}'; restore the file or train again")


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    # a column that no line has would be of type object, and differ from run to run
    return table.astype({column: "float64" for column in COLUMNS if column != "split"})


ANALYSIS = Analysis(name="training", columns={TABLE: COLUMNS}, per="run", compute=compute)
