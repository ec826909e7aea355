"""Training and validation loss by step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure
from rankdrift.analysis.figures._style import RunStyle, in_order, legend, panels, run_styles, whole_numbers

SMOOTHED_FROM = 100
"""Logged steps from which on the training loss is also drawn as a running mean."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    table = tables["training_metrics"].dropna(subset=["loss"])
    styles = run_styles(tables)
    splits = [split for split in ("train", "validation") if split in set(table["split"])]
    canvas, axes = panels(len(splits), height=3.3, share_y=True)
    for ax, split in zip(axes, splits, strict=True):
        _draw_split(ax, table[table["split"] == split], styles)
        ax.set_title(split)
        whole_numbers(ax, "optimizer step")
    axes[0].set_ylabel("loss (nats / target token)")
    legend(canvas, table["run"].unique(), styles)
    return canvas


def _draw_split(ax: Axes, table: pd.DataFrame, styles: Mapping[str, RunStyle]) -> None:
    for run in in_order(table["run"].unique(), styles):
        rows = table[table["run"] == run].sort_values("step")
        line = styles[run].of_line(len(rows))
        if len(rows) < SMOOTHED_FROM:
            ax.plot(rows["step"], rows["loss"], **line)
            continue
        window = len(rows) // 25
        ax.plot(rows["step"], rows["loss"], color=line["color"], alpha=0.25, linewidth=0.6)
        ax.plot(rows["step"], rows["loss"].rolling(window, center=True, min_periods=1).mean(), **line)


FIGURE = Figure(
    name="training_loss",
    title="Training and validation loss",
    section="Learning",
    tables=("training_metrics",),
    caption=(
        "Loss in nats per target token of the training batches and of the validation rows. With 100 or more "
        "logged steps the thick line is a running mean over 1/25 of them. Methods are compared fairly at "
        "equal loss or with a learning rate tuned for each, not at equal learning rate: LoRA's best is "
        "about ten times that of full fine-tuning."
    ),
    draw=_draw,
)
