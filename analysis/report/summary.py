"""The table of the last checkpoints: one row a run, and the base model."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from rankdrift.analysis.observations import (
    BASE,
    GENERAL_TEXT,
    base_score,
    forgetting,
    intruder_totals,
    last_checkpoints,
    leading_metrics,
    mean_states,
    rank_shares,
    rows_of,
    scores_of,
    tuned_rows,
    update_sizes,
)
from rankdrift.analysis.report.grids import MISSING, Grid, count, grid_of, number, with_error
from rankdrift.analysis.report.study import RunFacts, Study

Columns = dict[str, dict[str, str]]
"""Heading -> run -> text."""


def last_checkpoint_grid(study: Study) -> Grid:
    """Return what was measured on every run's last checkpoint and on the base."""
    runs = [run for seeds in study.arms.values() for run in seeds.values()]
    sources: dict[str, Callable[[pd.DataFrame], Columns]] = {
        "performance_metrics": _scores,
        "svd_analysis_results": _weights,
        "drift_metrics": _drift,
    }
    columns = _steps(study)
    for name, source in sources.items():
        table = study.table(name)
        if table is not None:
            columns |= source(table)
    columns["trainable parameters"] = {run.name: _trainable(run) for run in study.runs}
    columns["training time"] = {run.name: _training_time(run) for run in study.runs}
    rows = (
        {"run": run, **{heading: texts.get(run, MISSING) for heading, texts in columns.items()}}
        for run in [BASE, *runs]
    )
    return grid_of(rows)


def _steps(study: Study) -> Columns:
    """Return the last step of each run among its analysed checkpoints."""
    names = [
        name
        for name in ("performance_metrics", "svd_analysis_results", "drift_metrics")
        if name in study.tables
    ]
    steps = [tuned_rows(study.tables[name]).groupby("run")["step"].max() for name in names]
    if not steps:
        return {}
    last = pd.concat(steps).groupby(level=0).max()
    return {"step": {str(run): str(step) for run, step in last.items()}}


def _scores(performance: pd.DataFrame) -> Columns:
    columns: Columns = {}
    for task, metric in leading_metrics(performance):
        rows = last_checkpoints(scores_of(performance, task, metric))
        texts = {row.run: with_error(row.value, row.stderr) for row in rows_of(rows)}
        base = base_score(performance, task, metric)
        columns[f"{task}: {metric}"] = texts | ({BASE: with_error(*base)} if base else {})
    last = last_checkpoints(forgetting(performance))
    base = base_score(performance, GENERAL_TEXT, "nll")
    columns["NLL (nats/token)"] = _texts(last, "nll", 4) | ({BASE: number(base[0], 4)} if base else {})
    columns["NLL increase (nats/token)"] = _texts(last, "nll_increase")
    columns["KL from base (nats/token)"] = {
        row.run: with_error(row.kl_from_base, row.kl_stderr) for row in rows_of(last)
    }
    return columns


def _weights(spectra: pd.DataFrame) -> Columns:
    last = last_checkpoints(spectra)
    shares = rank_shares(last).groupby("run", as_index=False)[["update_entropy_rank", "null_share"]].median()
    intruders = intruder_totals(last)
    return {
        "relative update norm": _texts(update_sizes(last), "relative_update_norm"),
        "entropy rank": {row.run: number(row.update_entropy_rank) for row in rows_of(shares)},
        "share of noise's": {row.run: f"{100 * row.null_share:.0f} %" for row in rows_of(shares)},
        "intruders L / R": {
            row.run: f"{count(row.intruders_left)} / {count(row.intruders_right)}"
            for row in rows_of(intruders)
        },
    }


def _drift(drift: pd.DataFrame) -> Columns:
    last = last_checkpoints(mean_states(drift)).dropna(subset=["cka"])
    lowest = last.loc[last.groupby("run")["cka"].idxmin()]
    return {"lowest CKA (layer)": {row.run: f"{number(row.cka, 4)} ({row.layer})" for row in rows_of(lowest)}}


def _trainable(run: RunFacts) -> str:
    count = run.status.get("trainable_parameters")
    return MISSING if count is None else f"{count:,}"


def _texts(table: pd.DataFrame, column: str, digits: int = 3) -> dict[str, str]:
    return {run: number(value, digits) for run, value in zip(table["run"], table[column], strict=True)}


def _training_time(run: RunFacts) -> str:
    """Return the wall time of all steps of a finished run, without saves and evaluation."""
    seconds = run.status.get("training_seconds")
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
