"""The table of last checkpoints: one row a run, and the base model."""

from __future__ import annotations

import pandas as pd

from rankdrift.analysis.findings import Headline
from rankdrift.analysis.formats import MISSING
from rankdrift.analysis.report.grids import Columns, Grid, columns_of, grid_of
from rankdrift.analysis.report.study import RunFacts, Study
from rankdrift.analysis.report.topics import in_report_order
from rankdrift.analysis.sources.observations import BASE, tuned_rows

FIRST = (
    "± is one standard error over scored items. A dash: not measured at this step, or not defined for that "
    "row."
)
LAST = (
    "Training time is that of the steps alone, without start, evaluation and saves; it depends on whatever "
    "else the machine ran."
)


def last_checkpoint_grid(study: Study) -> Grid:
    """Return the analyses' headlines of every run's last checkpoint and of the base.

    What was not measured at the last of a run's checkpoints is missing: an earlier one is another model.
    """
    tables = [(headline, study.tables[headline.table]) for headline in _headlines(study)]
    last = _last_steps([table for _, table in tables])
    runs = [BASE, *(run for seeds in study.arms.values() for run in seeds.values())]
    columns: Columns = {
        "run": {(run,): run for run in runs},
        "step": {(run,): str(last[run]) for run in last},
    }
    for headline, table in tables:
        rows = table[(table["run"] == BASE) | (table["step"] == table["run"].map(last))]
        columns |= columns_of(headline.columns, headline.rows(rows))
    facts = {"adapted modules": _adapted, "trainable parameters": _trainable, "training time": _training_time}
    columns |= {name: {(run.name,): fact(run) for run in study.runs} for name, fact in facts.items()}
    return grid_of(columns)


def last_checkpoint_note(study: Study) -> str:
    """Return how to read the table of last checkpoints."""
    return " ".join([FIRST, *(headline.note for headline in _headlines(study) if headline.note), LAST])


def _headlines(study: Study) -> list[Headline]:
    declared = [headline for analysis in in_report_order() for headline in analysis.headline]
    return [headline for headline in declared if study.table(headline.table) is not None]


def _last_steps(tables: list[pd.DataFrame]) -> dict[str, int]:
    """Return the last step of each run among its analysed checkpoints."""
    steps = [tuned_rows(table)[["run", "step"]] for table in tables]
    found = pd.concat(steps).groupby("run")["step"].max() if steps else pd.Series(dtype="int64")
    return {str(run): int(step) for run, step in found.items()}


def _adapted(run: RunFacts) -> str:
    """Return how many modules have an adapter; the settings below name them."""
    return str(run.facts.get("adapted") or MISSING)


def _trainable(run: RunFacts) -> str:
    count = run.status.get("trainable_parameters")
    return MISSING if count is None else f"{count:,}"


def _training_time(run: RunFacts) -> str:
    """Return the wall time of all steps of a finished run, without saves and evaluation."""
    seconds = run.status.get("training_seconds")
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
