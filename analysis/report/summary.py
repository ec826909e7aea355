"""The table of the last checkpoints: one row a run, and the base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from rankdrift.analysis.report.grids import MISSING, Grid, count, grid_of, number, percent, with_error
from rankdrift.analysis.report.study import RunFacts, Study
from rankdrift.analysis.sources.observations import (
    BASE,
    GENERAL_TEXT,
    base_score,
    fixed_states,
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

Columns = dict[str, dict[str, str]]
"""Heading -> run -> text."""


def last_checkpoint_grid(study: Study) -> Grid:
    """Return what was measured on every run's last checkpoint and on the base.

    What was not measured at the last of a run's checkpoints is missing: an earlier one is another model.
    """
    runs = [run for seeds in study.arms.values() for run in seeds.values()]
    last = _last_steps(study)
    columns: Columns = {"step": {run: str(step) for run, step in last.items()}}
    for name, source in SOURCES.items():
        table = study.table(name)
        if table is not None:
            columns |= source(table[(table["run"] == BASE) | (table["step"] == table["run"].map(last))])
    columns["adapted modules"] = {run.name: _adapted(run) for run in study.runs if run.facts.get("adapted")}
    columns["trainable parameters"] = {run.name: _trainable(run) for run in study.runs}
    columns["training time"] = {run.name: _training_time(run) for run in study.runs}
    rows = (
        {"run": run, **{heading: texts.get(run, MISSING) for heading, texts in columns.items()}}
        for run in [BASE, *runs]
    )
    return grid_of(rows)


def _last_steps(study: Study) -> dict[str, int]:
    """Return the last step of each run among its analysed checkpoints."""
    tables = [study.table(name) for name in SOURCES]
    steps = [tuned_rows(table).groupby("run")["step"].max() for table in tables if table is not None]
    if not steps:
        return {}
    return {str(run): int(step) for run, step in pd.concat(steps).groupby(level=0).max().items()}


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
        "share of noise's": {row.run: percent(row.null_share) for row in rows_of(shares)},
        "intruders L / R": {
            row.run: f"{count(row.intruders_left)} / {count(row.intruders_right)}"
            for row in rows_of(intruders)
        },
    }


def _drift(drift: pd.DataFrame) -> Columns:
    last = last_checkpoints(mean_states(drift)).dropna(subset=["cka"])
    states = {run: fixed_states(rows) for run, rows in last.groupby("run")}
    return {
        f"CKA, {name} state": {
            str(run): f"{with_error(of[name].cka, of[name].cka_stderr, 4)} ({of[name].layer})"
            for run, of in states.items()
        }
        for name in ("middle", "last")
    }


def _adapted(run: RunFacts) -> str:
    """Return how many modules have an adapter; the settings below name them."""
    return str(run.facts["adapted"])


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


SOURCES: Mapping[str, Callable[[pd.DataFrame], Columns]] = {
    "performance_metrics": _scores,
    "svd_analysis_results": _weights,
    "drift_metrics": _drift,
}
"""Tables, and what is taken of each at a run's last checkpoint."""

NOTE = (
    "± is one standard error over scored items. A dash: not measured at this step, or not defined for that "
    'row. Ranks are medians over the matrices that changed; "share of noise\'s" is the median share of the '
    "rank that Gaussian noise of the same shape (LoRA: of the same r) has. NLL and KL are on general text, "
    "in nats a token. States are counted from 0, the embeddings. Training time is that of the steps alone, "
    "without start, evaluation and saves; it depends on whatever else the machine ran."
)
