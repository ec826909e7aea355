"""Cosines between the gradients of tasks, corrected for noise and as observed."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._matrices import column_inches, labelled_matrix
from rankdrift.analysis.figures._style import FEW, panels, run_styles, shared_bar, with_panels
from rankdrift.analysis.mathematics.statistics.intervals import t_quantile
from rankdrift.analysis.sources.observations import last_checkpoints, whole_gradients

KINDS = {"cosine_corrected": "corrected for noise", "cosine": "as observed"}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = last_checkpoints(whole_gradients(tables["task_gradients"]))
    if last[list(KINDS)].isna().all(axis=None):
        raise NothingToDraw("the table task_gradients has no trained checkpoint with a defined cosine")
    styles = run_styles(tables)
    runs = with_panels(last["run"].unique(), styles)
    columns = 2 if len(runs) == 1 else 4
    canvas, axes = panels(2 * len(runs), columns=columns, height=0.5 + 0.8 * column_inches(columns))
    places = [(run, kind) for run in runs for kind in KINDS]
    for ax, (run, kind) in zip(axes, places, strict=True):
        rows = last[last["run"] == run]
        values = _square(rows, rows[kind])
        image = labelled_matrix(ax, values, _square(rows, _texts(rows, kind)), Normalize(-1, 1))
        ax.tick_params(axis="x", labelrotation=90)
        ax.set_title(f"{styles[run].label}\n{KINDS[kind]}")
    for ax in axes[::columns]:
        ax.set_ylabel("task")
    for ax in axes[-columns:]:
        ax.set_xlabel("other task")
    shared_bar(canvas, image, axes, "cosine")
    return canvas


def _square(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Return values by task and other task, in the table's order of tasks."""
    tasks = list(rows["task"].unique())
    square = rows.assign(shown=values).pivot(index="task", columns="other_task", values="shown")
    return square.reindex(index=tasks, columns=tasks)


def _texts(rows: pd.DataFrame, kind: str) -> pd.Series:
    """Return each cosine, the corrected ones of two tasks with 95 % intervals."""
    texts = rows[kind].map("{:.2f}".format)
    bars = rows["shards"].map(t_quantile) * rows["cosine_corrected_stderr"]
    shown = (kind == "cosine_corrected") & (rows["task"] != rows["other_task"]) & bars.notna()
    return texts.where(~shown, texts + "\n±" + bars.map("{:.2f}".format))


FIGURE = Figure(
    name="task_gradients",
    title="Gradients of the tasks against each other",
    section="Gradients",
    tables=("task_gradients",),
    caption=(
        "Cosine of the gradients of two tasks' losses at the last checkpoint, over all weights that are "
        "tuned, in the space of the weights (for LoRA too, so that methods compare); rows are fixed, "
        "dropout is off. Below 0 a step that helps one task hurts the other (arXiv 2001.06782). As "
        "observed, noise of few rows draws every cosine to 0, also of a task with itself (on the "
        "diagonal: what as many other rows would give); corrected, with 95 % intervals (jackknife), "
        "noise is divided out and a task has 1 with itself. nan: the noise leaves nothing to divide by."
    )
    + FEW,
    draw=_draw,
)
