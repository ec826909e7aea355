"""Task metric by step on both splits, against the base model and what needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    RunStyle,
    draw_band,
    draw_runs,
    in_order,
    legend,
    panels,
    reference,
    run_styles,
    task_title,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import base_score, leading_metrics, scores_of, tuned_rows

DOTTED, SPARSE = (0, (1, 1.5)), (0, (1, 4))


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    performance = tables["performance_metrics"]
    styles = run_styles(tables)
    metrics = leading_metrics(tuned_rows(performance))
    if not metrics:
        raise NothingToDraw("no trained checkpoint was scored on a task")
    validation, baselines = (tables.get(name) for name in ("validation_metrics", "baselines"))
    shown: dict[str, Any] = {"base model": "--"}
    canvas, axes = panels(len(metrics), height=3.3)
    for ax, (task, metric) in zip(axes, metrics, strict=True):
        rows = tuned_rows(scores_of(performance, task, metric))
        rows = rows.assign(low=rows["value"] - rows["stderr"], high=rows["value"] + rows["stderr"])
        draw_band(ax, rows, "step", "low", "high", styles)
        draw_runs(ax, rows, "step", "value", styles)
        _draw_base(ax, base_score(performance, task, metric))
        if validation is not None and _draw_validation(ax, scores_of(validation, task, metric), styles):
            shown["validation split"] = DOTTED
        if baselines is not None and _draw_majority(ax, scores_of(baselines, task, metric)):
            shown["most frequent answer"] = SPARSE
        ax.set_title(task_title(task))
        ax.set_ylabel(metric)
        whole_numbers(ax, "optimizer step")
    legend(canvas, tuned_rows(performance)["run"].unique(), styles, *starmap(reference, shown.items()))
    return canvas


def _draw_base(ax: Axes, base: tuple[float, float] | None) -> None:
    if base is None:
        return
    value, stderr = base
    ax.axhline(value, color=GREY, linestyle="--", linewidth=1.2)
    ax.axhspan(value - stderr, value + stderr, color=GREY, alpha=0.12, linewidth=0)


def _draw_validation(ax: Axes, scores: pd.DataFrame, styles: Mapping[str, RunStyle]) -> bool:
    """Draw the course on the split that selects; say whether there is one."""
    rows = tuned_rows(scores)
    for run in in_order(rows["run"].unique(), styles):
        of_run = rows[rows["run"] == run].sort_values("step")
        ax.plot(of_run["step"], of_run["value"], color=styles[run].colour, linestyle=DOTTED, linewidth=1)
    return not rows.empty


def _draw_majority(ax: Axes, baselines: pd.DataFrame) -> bool:
    """Draw what the most frequent answer gives; say whether it is known."""
    values = baselines[baselines["rule"] == "majority"]["value"].dropna()
    for value in values.head(1):
        ax.axhline(value, color=GREY, linestyle=SPARSE, linewidth=1)
    return not values.empty


FIGURE = Figure(
    name="learning_curve",
    title="Learning curve",
    section="Learning",
    tables=("performance_metrics",),
    caption=(
        "The first metric of each task trained on, and their macro average where there are several, at every "
        "scored checkpoint; bands are one standard error over the scored items, the dashed line is the base "
        "model. Thin dotted lines without markers: the validation split, where it was scored, by which a "
        "checkpoint may be chosen; what is reported is the other one. The thin grey dotted line is what "
        "always giving the most frequent answer scores: a run that is not above it has learnt nothing else. "
        "All checkpoints are scored on the same items, so "
        "that differences between lines are surer than the bands suggest, but the bands hold no variation "
        "over seeds."
    ),
    draw=_draw,
)
