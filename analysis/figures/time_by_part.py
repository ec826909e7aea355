"""Where the time of training went: seconds a step by part, and what lay between steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import GREY, in_order, panels, run_styles
from rankdrift.analysis.formats import number, percent
from rankdrift.analysis.sources.observations import (
    BESIDE_STEPS,
    PARTS_OF_STEPS,
    rows_of,
    timed_steps,
    times_of_runs,
)

COLOURS = {
    **{"data": "#DDCC77", "forward": "#88CCEE", "backward": "#0072B2", "update": "#D55E00"},
    **{"exchange": "#CC79A7", "probe": "#117733", "evaluation": "#44AA99", "save": "#999933"},
    "rest": "#d0d0d0",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    training = tables["training_metrics"]
    times = times_of_runs(training).set_index("run")
    runs = in_order(times.index, run_styles(tables))
    if not runs:
        raise NothingToDraw("no step in the table training_metrics was logged with its seconds")
    parts = _seconds_a_step(training).reindex(runs)
    shown = [part for part in COLOURS if (parts[part] > 0).any()]
    canvas, (ax,) = panels(1, height=0.9 + 0.32 * len(runs))
    left = pd.Series(0.0, index=runs)
    for part in shown:
        ax.barh(runs, parts[part], left=left, color=COLOURS[part], height=0.7)
        left += parts[part]
    _annotate(ax, left.to_numpy(), times.reindex(runs))
    ax.invert_yaxis()
    ax.set_xlabel("seconds a step")
    ax.set_ylabel("run")
    ax.grid(visible=False, axis="y")
    handles = [Patch(color=COLOURS[part], label=part) for part in shown]
    canvas.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return canvas


def _seconds_a_step(training: pd.DataFrame) -> pd.DataFrame:
    """Return the mean seconds of every part, a column each, a row a run."""
    named = {f"seconds_{part}": part for part in (*PARTS_OF_STEPS, *BESIDE_STEPS)}
    by_run = timed_steps(training).fillna(dict.fromkeys(named, 0.0)).groupby("run")
    means = by_run[[*named, "seconds"]].mean().rename(columns=named)
    known = means[list(PARTS_OF_STEPS)].sum(axis=1)
    return means.assign(rest=(means["seconds"] - known).clip(lower=0))


def _annotate(ax: Axes, ends: np.ndarray, times: pd.DataFrame) -> None:
    for place, (end, row) in enumerate(zip(ends, rows_of(times), strict=True)):
        said = f" {number(row.tokens_per_second)} tokens/s"
        said += f", MFU {percent(row.mfu)}" if row.mfu == row.mfu else ""
        ax.text(end, place, said, va="center", fontsize=8.5, color=GREY)
    ax.set_xlim(0, 1.35 * max(ends.max(), 1e-9))


FIGURE = Figure(
    name="time_by_part",
    title="Time of training by part",
    section="Cost",
    tables=("training_metrics",),
    caption=(
        "Mean seconds of a logged step by part; probes, evaluations and saves are shared out among all "
        "logged steps, and the rest is what no clock was set for. Behind the bars the median of real tokens "
        "a second and of the model's operations as a share of the measured peak (MFU). All of it belongs to "
        "the machine, and to what else ran on it."
    ),
    draw=_draw,
)
