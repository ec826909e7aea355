"""What editing intruder dimensions does to forgetting and to the task, beside controls of equal strength."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import FEW, GREY, few_ticks, panels, reference, run_styles, with_panels
from rankdrift.analysis.sources.observations import EDIT_SETTINGS, edit_outcomes, leading_metrics

ARMS = {
    "intruders": ("intruders", "#D55E00", "D"),
    "neighbours": ("control: neighbours", "#0072B2", "s"),
    "random": ("control: random directions", "#56B4E9", "^"),
    "shrunk": ("control: whole update, shrunk", "#009E73", "o"),
    "rescaled": ("control: whole update, to the norm left", "#999933", "v"),
}
"""Arm -> label, colour and marker."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    outcomes = edit_outcomes(tables["variant_scores"]).dropna(subset=["score", "nll"])
    if outcomes.empty:
        raise NothingToDraw(
            "no edited model was scored on a task and on general text; run 'rankdrift analyze intervene'"
        )
    styles = run_styles(tables)
    known = set(zip(outcomes["run"], outcomes["task"], strict=True))
    places = [
        (run, task, metric)
        for run in with_panels(outcomes["run"].unique(), styles)
        for task, metric in leading_metrics(outcomes)
        if (run, task) in known
    ]
    canvas, axes = panels(len(places), columns=min(len(places), 3), height=3.0)
    for ax, (run, task, metric) in zip(axes, places, strict=True):
        rows = outcomes[(outcomes["run"] == run) & (outcomes["task"] == task)]
        for settings, points in rows.groupby(["arm", *EDIT_SETTINGS[1:]], sort=False):
            _draw_arm(ax, points.sort_values("at"), *ARMS[str(settings[0])][1:])
        _mark_step(ax)
        ax.set_title(styles[run].label)
        ax.set_xlabel("change of NLL (nats / token)")
        ax.set_ylabel(f"change of {metric}, {task}")
        few_ticks(ax)
    canvas.legend(handles=_handles(outcomes), loc="outside upper center", ncols=3)
    return canvas


def _draw_arm(ax: Axes, points: pd.DataFrame, colour: str, marker: str) -> None:
    """Draw an arm's points with their intervals; several strengths are joined, and named once in a panel."""
    if len(points) > 1:
        ax.plot(points["nll"], points["score"], color=colour, linewidth=0.9, alpha=0.6)
        named = points[points["arm"] == "intruders"]
        for at, x, y in named[["at", "nll", "score"]].itertuples(index=False):
            ax.annotate(f"x {at:g}", (x, y), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    ax.hlines(points["score"], points["nll_low"], points["nll_high"], color=colour, linewidth=1.0)
    ax.vlines(points["nll"], points["score_low"], points["score_high"], color=colour, linewidth=1.0)
    ax.plot(points["nll"], points["score"], linestyle="", marker=marker, color=colour, zorder=3)


def _mark_step(ax: Axes) -> None:
    """Draw the axes through the step that was edited, and a star on it."""
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.plot(0, 0, marker="*", markersize=11, color=GREY)


def _handles(outcomes: pd.DataFrame) -> list[Line2D]:
    arms = [ARMS[arm] for arm in ARMS if (outcomes["arm"] == arm).any()]
    handles = [reference(label, linestyle="", color=colour, marker=marker) for label, colour, marker in arms]
    return [*handles, reference("the step itself", linestyle="", marker="*", markersize=11)]


FIGURE = Figure(
    name="interventions",
    title="Intruders edited, and controls",
    section="Weights",
    tables=("variant_scores",),
    caption=(
        "Change of the NLL of general text and of the task's score when a step's weights are edited, "
        "with 95 % intervals over items scored by both: left is less forgetting, up is a higher score. "
        "Intruders: their singular values are scaled (by 0: removed; arXiv 2410.21228). Controls: as "
        "many neighbouring vectors that are no intruders are scaled alike; random directions are taken "
        "away, with an edit of the same norm; the whole update is shrunk by an edit of the same norm, and "
        "scaled to the norm that the intruders' edit leaves, which may be larger than before. Edits of one "
        "arm by several strengths are joined. Whatever moves a model towards its base may forget less: that "
        "intruders carry forgetting is shown only where their point lies left of every control's, "
        "beyond both intervals. The intervals are over items, of one trained model."
    )
    + FEW,
    draw=_draw,
)
