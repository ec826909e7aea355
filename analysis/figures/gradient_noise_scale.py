"""The noise scale of each task's gradient by step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    RunStyle,
    draw_errors,
    draw_runs,
    in_order,
    legend,
    log_if_positive,
    panels,
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.mathematics.statistics.intervals import t_quantile
from rankdrift.analysis.sources.observations import tuned_rows, whole_gradients


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    noise = tuned_rows(whole_gradients(tables["gradient_noise"]))
    if noise["noise_scale"].isna().all():
        raise NothingToDraw("the table gradient_noise has no trained checkpoint with a defined noise scale")
    styles = run_styles(tables)
    tasks = list(noise["task"].unique())
    canvas, axes = panels(len(tasks), height=3.0, share_y=True)
    for ax, task in zip(axes, tasks, strict=True):
        rows = noise[noise["task"] == task]
        draw_runs(ax, rows, "step", "noise_scale", styles)
        quantiles = rows["shards"].map(t_quantile)
        draw_errors(ax, rows, "step", "noise_scale", "noise_scale_stderr", styles, quantiles)
        _mark_undefined(ax, rows[rows["noise_scale"].isna()], styles)
        ax.set_title(task)
        whole_numbers(ax, "optimizer step")
    log_if_positive(axes[0], noise["noise_scale"])
    axes[0].set_ylabel(r"noise scale $S / |G|^2$ (rows)")
    undefined = reference("undefined", linestyle="", marker="x")
    legend(canvas, noise["run"].unique(), styles, *([undefined] if noise["noise_scale"].isna().any() else []))
    return canvas


def _mark_undefined(ax: Axes, rows: pd.DataFrame, styles: Mapping[str, RunStyle]) -> None:
    """Put a cross at the foot of the panel where a step has no noise scale."""
    for run in in_order(rows["run"].unique(), styles):
        steps = rows[rows["run"] == run]["step"]
        foot = [0.03] * len(steps)
        ax.plot(
            steps,
            foot,
            linestyle="",
            marker="x",
            color=styles[run].colour,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
        )


FIGURE = Figure(
    name="gradient_noise_scale",
    title="Noise scale of the gradient",
    section="Gradients",
    tables=("gradient_noise",),
    caption=(
        "How many rows a batch needs for its noise to be as large as the gradient (arXiv 1812.06162): the "
        "trace of the covariance of one row's gradient over the squared norm of the gradient without "
        "noise, each averaged before they are divided, over all weights that are tuned, in the space of "
        "the weights; with 95 % intervals (jackknife, Student's t over shards of rows). A cross: "
        "undefined, because the estimate of |G|² is not above zero; more rows would be needed. It grows "
        "as a task is learnt and its gradient vanishes."
    ),
    draw=_draw,
)
