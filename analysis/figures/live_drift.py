"""How far each run has come from the base, while it trains."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    draw_runs,
    legend,
    log_if_positive,
    panels,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import tuned_rows

SPECTRA = {
    "sigma1_ratio": r"largest $\sigma_1(\Delta W) / \sigma_1(W_0)$",
    "stable_rank": "median stable rank",
    "entropy_rank": "median entropy rank",
}
"""Quantity of a matrix with an adapter -> what is drawn of all of them."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    drift = tuned_rows(tables["live_drift"])
    whole = drift[drift["level"] == "global"]
    if whole.empty:
        raise NothingToDraw("the table live_drift has no rows of level 'global'")
    matrices = drift[(drift["level"] == "parameter") & drift["stable_rank"].notna()].groupby(["run", "step"])
    spectra = matrices.agg({"sigma1_ratio": "max", "stable_rank": "median", "entropy_rank": "median"})
    styles = run_styles(tables)
    drawn = ["relative_update_norm", *(SPECTRA if len(spectra) else ())]
    canvas, axes = panels(len(drawn), height=2.6)
    for ax, column in zip(axes, drawn, strict=True):
        rows = whole if column not in SPECTRA else spectra.reset_index()
        draw_runs(ax, rows, "step", column, styles)
        log_if_positive(ax, rows[column])
        ax.set_ylabel(SPECTRA.get(column, r"$\|\Delta W\| / \|W_0\|$"))
        whole_numbers(ax, "optimizer step")
    legend(canvas, whole["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="live_drift",
    title="Distance from the base while training",
    section="Weights",
    tables=("live_drift",),
    caption=(
        "Norm of all that a run has changed over the norm of what it changes, at every probed step: full "
        "fine-tuning's over all weights, an adapter's over the matrices it adapts. Ranks and the largest "
        "singular value are those of adapters' updates, exactly, from cores of r x r; of whole weights the "
        "analysis of checkpoints has them."
    ),
    draw=_draw,
)
