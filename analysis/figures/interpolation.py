"""Scores on the straight line from the base's weights to the tuned ones."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    draw_band,
    draw_runs,
    few_ticks,
    legend,
    panels,
    reference,
    run_styles,
    task_title,
)
from rankdrift.analysis.sources.observations import GENERAL_TEXT, leading_metrics, line_scores, scores_of


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    line = line_scores(tables["variant_scores"])
    if line.empty:
        raise NothingToDraw("no interpolated model was scored; run 'rankdrift analyze interpolate'")
    styles = run_styles(tables)
    metrics = leading_metrics(line)
    metrics += [(GENERAL_TEXT, "nll")] if (line["metric"] == "nll").any() else []
    canvas, axes = panels(len(metrics), height=3.2)
    for ax, (task, metric) in zip(axes, metrics, strict=True):
        rows = scores_of(line, task, metric)
        draw_band(ax, rows, "at", "low", "high", styles)
        draw_runs(ax, rows, "at", "value", styles)
        ax.axvline(1, color=GREY, linestyle="--", linewidth=1.2)
        ax.set_title(task_title(task))
        ax.set_ylabel("NLL (nats / token)" if task == GENERAL_TEXT else metric)
        ax.set_xlabel(r"$t$ in $W_0 + t\,\Delta W$")
        few_ticks(ax)
    legend(canvas, line["run"].unique(), styles, reference("the tuned model"))
    return canvas


FIGURE = Figure(
    name="interpolation",
    title="Between base and tuned weights",
    section="Weights",
    tables=("variant_scores",),
    caption=(
        "Models whose weights are W0 + t (W - W0): 0 is the base model (with the tuned classification head "
        "where there is one), 1 the last checkpoint, which is drawn whether or not it was asked for. Bands: "
        "95 % intervals of the difference from t = 1 over items scored by both. Where the task's score is "
        "kept at a t below 1 with less NLL, part of the forgetting was not needed for the task; a hump in "
        "between says that the two ends lie in different valleys of the loss."
    ),
    draw=_draw,
)
