"""Task metric by step, against the base model."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    draw_band,
    draw_runs,
    legend,
    panels,
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import base_score, leading_metrics, scores_of, tuned_rows


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    performance = tables["performance_metrics"]
    styles = run_styles(tables)
    metrics = leading_metrics(tuned_rows(performance))
    if not metrics:
        raise NothingToDraw("no trained checkpoint was scored on a task")
    canvas, axes = panels(len(metrics), height=3.3)
    for ax, (task, metric) in zip(axes, metrics, strict=True):
        rows = tuned_rows(scores_of(performance, task, metric))
        rows = rows.assign(low=rows["value"] - rows["stderr"], high=rows["value"] + rows["stderr"])
        draw_band(ax, rows, "step", "low", "high", styles)
        draw_runs(ax, rows, "step", "value", styles)
        _draw_base(ax, base_score(performance, task, metric))
        ax.set_title(task)
        ax.set_ylabel(metric)
        whole_numbers(ax, "optimizer step")
    legend(canvas, tuned_rows(performance)["run"].unique(), styles, reference("base model"))
    return canvas


def _draw_base(ax: Axes, base: tuple[float, float] | None) -> None:
    if base is None:
        return
    value, stderr = base
    ax.axhline(value, color=GREY, linestyle="--", linewidth=1.2)
    ax.axhspan(value - stderr, value + stderr, color=GREY, alpha=0.12, linewidth=0)


FIGURE = Figure(
    name="learning_curve",
    title="Learning curve",
    section="Learning and forgetting",
    tables=("performance_metrics",),
    caption=(
        "The first metric of each task at every scored checkpoint; bands are one standard error over the "
        "scored items, the dashed line is the base model. All checkpoints are scored on the same items, so "
        "that differences between lines are surer than the bands suggest, but the bands hold no variation "
        "over seeds."
    ),
    draw=_draw,
)
