"""Forgetting against what is said to drive it: KL, the update's size, its leading value, intruder energy."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import few_ticks, in_order, legend, panels, run_styles
from rankdrift.analysis.observations import forgetting, intruder_totals, rows_of, update_sizes

PREDICTORS = {
    "kl_from_base": "KL(base ‖ tuned) (nats / token)",
    "relative_update_norm": r"$\|\Delta W\| / \|W_0\|$, all matrices",
    "sigma1_ratio": r"largest $\sigma_1(\Delta W) / \sigma_1(W_0)$",
    "intruder_energy": "energy share of intruders",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    points = _joined(tables["performance_metrics"], tables["svd_analysis_results"])
    if points.empty:
        raise NothingToDraw(
            "no checkpoint has both its update and its NLL on general text, with the base model's"
        )
    styles = run_styles(tables)
    canvas, axes = panels(len(PREDICTORS), height=3.0, share_y=True)
    for ax, (column, label) in zip(axes, PREDICTORS.items(), strict=True):
        for run in in_order(points["run"].unique(), styles):
            rows = points[points["run"] == run].sort_values("step")
            ax.plot(rows[column], rows["nll_increase"], **styles[run].of_line(1))
        ax.set_xlabel(label)
        ax.set_title(_association(tables.get("forgetting_predictors"), column), fontweight="normal")
        few_ticks(ax)
    for ax in axes[::2]:
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


def _joined(performance: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Return one row a checkpoint: the predictors and the increase of the NLL."""
    intruders = intruder_totals(spectra)
    intruders["intruder_energy"] = (
        intruders["intruder_energy_left"] + intruders["intruder_energy_right"]
    ) / 2
    joined = forgetting(performance).dropna(subset=["nll_increase"])
    for predictor in (update_sizes(spectra), intruders):
        joined = joined.merge(predictor.drop(columns=["method", "rank", "seed"]), on=["run", "step"])
    return joined


FIGURE = Figure(
    name="predictors_of_forgetting",
    title="Forgetting and what may drive it",
    section="Against the base spectrum",
    tables=("performance_metrics", "svd_analysis_results"),
    caption=(
        "Each point is one checkpoint, each path one run; above, the rank correlation over all points, "
        "with a 95 % interval from resampled runs (none for fewer than five). Published studies disagree "
        "on what carries forgetting: intruder dimensions (arXiv 2410.21228) or the mere size and "
        "threshold of the update (arXiv 2607.23711), or how far the predictions moved (arXiv "
        "2509.04259); hence all side by side. Along one run everything grows with the step, so that a "
        "rising path shows no cause: only a line that several runs share speaks for a predictor, and "
        "only an intervention with the norm held equal would show it."
    ),
    draw=_draw,
)
