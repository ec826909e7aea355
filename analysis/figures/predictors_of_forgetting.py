"""Forgetting against what is said to drive it: KL, size and leading value of the update, intruders, drift."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    few_ticks,
    in_order,
    legend,
    panels,
    run_styles,
    symlog_if_wide,
)
from rankdrift.analysis.sources.observations import rows_of, tuned_rows

PREDICTORS = {
    "prompt_kl": "KL(base ‖ tuned) on prompts (nats / token)",
    "kl_from_base": "KL(base ‖ tuned), same text (nats / token)",
    "relative_update_norm": r"$\|\Delta W\| / \|W_0\|$, all matrices",
    "sigma1_ratio": r"largest $\sigma_1(\Delta W) / \sigma_1(W_0)$",
    "intruder_energy_left": "energy share of left intruders",
    "drift": "1 - CKA, mean over layers",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    points = tuned_rows(tables["learning_forgetting"]).drop_duplicates(["run", "step"])
    points = points.dropna(subset=["nll_increase"])
    shown = [predictor for predictor in PREDICTORS if (points[predictor].fillna(0) != 0).any()]
    if not shown:
        raise NothingToDraw(
            "no checkpoint has both its update and its NLL on general text, with the base model's"
        )
    styles = run_styles(tables)
    canvas, axes = panels(len(shown), height=3.0, share_y=True)
    for ax, predictor in zip(axes, shown, strict=True):
        for run in in_order(points["run"].unique(), styles):
            rows = points[points["run"] == run].sort_values("step")
            ax.plot(rows[predictor], rows["nll_increase"], **styles[run].of_line(1))
        ax.set_xlabel(PREDICTORS[predictor])
        ax.set_title(_association(tables.get("forgetting_predictors"), predictor), fontweight="normal")
        few_ticks(ax)
        symlog_if_wide(ax.set_xscale, points[predictor])
    symlog_if_wide(axes[0].set_yscale, points["nll_increase"])  # of all, which share it
    for ax in axes:
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel("NLL increase (nats / token)")
    legend(canvas, points["run"].unique(), styles)
    return canvas


def _association(table: pd.DataFrame | None, predictor: str) -> str:
    """Return the rank correlation over all checkpoints of all runs, with its interval where there is one."""
    if table is None:
        return ""
    rows = table[(table["scope"] == "pooled") & (table["points"] == "all")]
    for row in rows_of(rows[rows["predictor"] == predictor].dropna(subset=["spearman"])):
        known = row.spearman_low == row.spearman_low
        interval = f" [{row.spearman_low:.2f}, {row.spearman_high:.2f}]" if known else ", no interval"
        return f"Spearman {row.spearman:.2f}{interval} ({row.runs} runs)"
    return ""


FIGURE = Figure(
    name="predictors_of_forgetting",
    title="Forgetting and what may drive it",
    section="Forgetting",
    tables=("learning_forgetting",),
    caption=(
        "Each point is one checkpoint, each path one run; above, the rank correlation over all points, "
        "with a 95 % interval from resampled arms (none for fewer than five). KL is taken on the same text "
        "as forgetting, and so no independent predictor (arXiv 2509.04259 takes it on the new task's "
        "inputs). Published studies disagree on what carries forgetting: intruder dimensions (arXiv "
        "2410.21228) or the mere size and threshold of the update (arXiv 2607.23711); hence all side by "
        "side. Along one run all of these tend to move with the step, so that a rising path shows no cause: "
        "only a line that several runs share speaks for a predictor, and only an intervention with the norm "
        "held equal would show it. Where one run went much further than most, an axis is logarithmic beyond "
        "the lower values."
    ),
    draw=_draw,
)
