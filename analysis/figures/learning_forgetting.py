"""The plane of learning against forgetting: one path a run, from the base model on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    RunStyle,
    in_order,
    legend,
    panels,
    reference,
    run_styles,
    symlog_if_wide,
)
from rankdrift.analysis.sources.observations import base_score, forgetting, leading_metrics, scores_of

COSTS = {
    "nll_increase": "NLL increase on general text (nats / token)",
    "kl_from_base": "KL(base ‖ tuned) (nats / token)",
    "retention_drop": "drop of mean retention accuracy",
}
ERRORS = {"kl_from_base": "kl_stderr", "retention_drop": "retention_stderr"}
"""Cost -> column of its standard error."""

Score = tuple[float, float]
"""Value and standard error."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    performance = tables["performance_metrics"]
    styles = run_styles(tables)
    costs = forgetting(performance)
    shown = [cost for cost in COSTS if costs[cost].notna().any()]
    metrics = leading_metrics(performance)
    if not shown or not metrics:
        raise NothingToDraw(
            "it needs trained checkpoints scored on a task and on general text, and the base model's scores"
        )
    canvas, axes = panels(len(metrics) * len(shown), columns=len(shown), height=3.5)
    places = [(task, metric, cost) for task, metric in metrics for cost in shown]
    for ax, (task, metric, cost) in zip(axes, places, strict=True):
        learned = scores_of(performance, task, metric)[["run", "step", "value", "stderr"]]
        base = base_score(performance, task, metric)
        _draw_paths(ax, costs.merge(learned, on=["run", "step"]), cost, base, styles)
        _draw_base(ax, base)
        symlog_if_wide(ax.set_xscale, costs[cost])
        ax.set_xlabel(COSTS[cost])
        higher = scores_of(performance, task, metric)["higher_is_better"].iloc[0]
        ax.set_ylabel(f"{task}: {metric}" + ("" if higher else " (lower is better)"))
    star = reference("base model", linestyle="", marker="*", markersize=11)
    legend(canvas, costs["run"].unique(), styles, star)
    return canvas


def _draw_paths(
    ax: Axes, points: pd.DataFrame, cost: str, base: Score | None, styles: Mapping[str, RunStyle]
) -> None:
    for run in in_order(points["run"].unique(), styles):
        rows = points[points["run"] == run].sort_values("step")
        style = styles[run]
        path = rows[[cost, "value"]].to_numpy()
        path = path if base is None else np.vstack([[0.0, base[0]], path])
        ax.plot(*path.T, color=style.colour, linestyle=style.line, linewidth=1, alpha=0.8)
        ax.scatter(
            rows[cost],
            rows["value"],
            s=np.linspace(14, 62, len(rows)),
            color=style.colour,
            marker=style.marker,
        )
        last = rows.iloc[-1]
        x_error = last[ERRORS[cost]] if cost in ERRORS else np.nan
        ax.errorbar(
            last[cost], last["value"], yerr=last["stderr"], xerr=x_error, color=style.colour, capsize=2.5
        )


def _draw_base(ax: Axes, base: Score | None) -> None:
    if base is None:
        return
    ax.errorbar(0, base[0], yerr=base[1], color=GREY, marker="*", markersize=12, capsize=2.5, zorder=4)


FIGURE = Figure(
    name="learning_forgetting",
    title="Learning against forgetting",
    section="Forgetting",
    tables=("performance_metrics",),
    caption=(
        "Each path is one run; markers grow with the step. Up is better learning (for some scores down, as "
        "labelled), left is less forgetting: of general text, of the base's predictions on it, and, where "
        "they were scored, of retention tasks (mean accuracy on HellaSwag, ARC-challenge and WinoGrande, as "
        "in arXiv 2405.09673). Error bars at the last checkpoint are one standard error over items; the "
        "increase of the NLL is a difference over the same text, whose two standard errors do not give its "
        "own: its interval is in the table item_contrasts, and stated in the findings. That of the drop "
        "takes the two models' items for different ones, which is too much. Compare methods where their "
        "heights agree (equal learning), not at equal step: one point to the right of another that also "
        "lies higher is a trade-off, not a loss. Where one run went much further than most, the axis is "
        "logarithmic beyond the lower values."
    ),
    draw=_draw,
)
