"""Cosines between the gradients of a run's tasks, from training steps."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import draw_runs, legend, panels, run_styles, whole_numbers
from rankdrift.analysis.sources.observations import running_agreement, tuned_rows


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    rows = running_agreement(tuned_rows(tables["live_conflict"]))
    if rows["cosine"].isna().all():
        raise NothingToDraw("the table live_conflict has no step where gradients of two tasks exceed noise")
    styles = run_styles(tables)
    pairs = list(rows[["task", "other_task"]].drop_duplicates().itertuples(index=False, name=None))
    canvas, axes = panels(len(pairs), height=2.6, share_y=True)
    for ax, (task, other) in zip(axes, pairs, strict=True):
        own = rows[(rows["task"] == task) & (rows["other_task"] == other)]
        draw_runs(ax, own, "step", "cosine", styles)
        ax.axhline(0, color="#6b6b6b", linewidth=1)
        ax.set_title(f"{task}, {other}")
        whole_numbers(ax, "optimizer step")
    axes[0].set_ylabel("cosine without noise")
    legend(canvas, rows["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="live_conflict",
    title="Agreement of the tasks' gradients while training",
    section="Gradients",
    tables=("live_conflict",),
    caption=(
        "Cosine of two tasks' gradients over all that trains, corrected for the noise of both by halves of "
        "their rows; a ratio of means over the probed steps up to there, so that early values are rough and "
        "may leave [-1, 1]. Below zero the tasks pull against each other. LoRA's gradients are those of its "
        "factors."
    ),
    draw=_draw,
)
