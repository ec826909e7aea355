"""Gradient statistics per layer and group over a run, as its probe recorded them online."""

from __future__ import annotations

import pandas as pd

from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.findings import Finding, Listing, Sentence, among
from rankdrift.analysis.sources.observations import gradient_statistics
from rankdrift.analysis.sources.recorded_gradients import COLUMNS, PHASE, read_gradients
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout

TABLE, GROUPS, LAYERS = "gradient_analysis_results", "group_norms", "layer_norms"
SUMS = {
    GROUPS: ("group", {"phase", "group", "factor", "l2_norm"}),
    LAYERS: ("layer", {"phase", "layer", "factor", "l2_norm"}),
}
"""Table -> the level of which it has the norms, and its columns."""


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the tables with a ``step`` column; no rows for a run that was trained without the probe."""
    if subject.run_dir is None:
        return {}
    path = RunLayout(subject.run_dir).probe("gradients")
    if not path.exists():
        return {}
    everything = read_gradients(path)
    norms = {table: everything[everything["level"] == level] for table, (level, _) in SUMS.items()}
    return {TABLE: everything} | {
        table: rows[["step", *_columns(table)]].reset_index(drop=True) for table, rows in norms.items()
    }


def _columns(table: str) -> dict[str, str]:
    return {column: meaning for column, meaning in (PHASE | COLUMNS).items() if column in SUMS[table][1]}


def _course(gradients: pd.DataFrame) -> pd.DataFrame:
    """Return the whole gradient at each probed step: its norm in the first and last third, extreme layers."""
    rows = gradient_statistics(gradients, "global").sort_values("step")
    by_run = rows.groupby("run")["step"]
    third = (by_run.transform("size") // 3).clip(lower=1)
    layers = gradient_statistics(gradients, "layer").groupby(["run", "layer"])["l2_norm"].median().dropna()
    by_norm = layers.sort_values(kind="stable").reset_index("layer")["layer"].groupby("run")
    return rows.assign(
        first=rows["l2_norm"].where(by_run.cumcount() < third),
        last=rows["l2_norm"].where(by_run.cumcount(ascending=False) < third),
        largest=rows["run"].map(by_norm.last()),
        smallest=rows["run"].map(by_norm.first()),
    )


NORMS = Listing(
    {
        "run": "{run}",
        "probed steps": "{step.size} ({step.min} to {step.max})",
        "at first": "{first.median:number}",
        "at last": "{last.median:number}",
        "largest layer": "{largest:count}",
        "smallest layer": "{smallest:count}",
    },
    "Norm of the gradient before clipping while training: medians of the first and of the last third of the "
    "probed steps, and the layers with the largest and the smallest median over all of them",
)
SPACES = Sentence(
    "LoRA's factors and whole weights are different spaces: their gradients' sizes do not compare.",
    lambda rows: among(rows, rows["method"].nunique() > 1),
)
ANALYSIS = Analysis(
    name="gradients",
    columns={TABLE: PHASE | COLUMNS, **{table: _columns(table) for table in SUMS}},
    per="run",
    compute=compute,
    version=3,
    findings=(Finding("Gradients", (TABLE,), _course, (NORMS, SPACES)),),
)
