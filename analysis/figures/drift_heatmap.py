"""Drift of the representations by layer and step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    FEW,
    heatmap,
    log_colours,
    panels,
    run_styles,
    shared_bar,
    with_panels,
)
from rankdrift.analysis.sources.observations import mean_states, tuned_rows


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    drift = mean_states(tuned_rows(tables["drift_metrics"]))
    drift = drift.assign(change=1 - drift["cka"])
    if drift["change"].isna().all():
        raise NothingToDraw("the table drift_metrics has no trained checkpoint with a defined CKA")
    styles = run_styles(tables)
    runs = with_panels(drift["run"].unique(), styles)
    most_steps = int(drift.groupby("run")["step"].nunique().max())
    canvas, axes = panels(len(runs), columns=1 if len(runs) <= 3 else 2, height=1.3 + 0.12 * most_steps)
    norm = log_colours(drift["change"].to_numpy())
    for ax, run in zip(axes, runs, strict=True):
        grid = drift[drift["run"] == run].pivot_table(index="step", columns="layer", values="change")
        image = heatmap(ax, grid, norm, "step")
        ax.set_title(styles[run].label)
    axes[-1].set_xlabel("layer (0 = embeddings)")
    shared_bar(canvas, image, axes, "$1 - $CKA")
    return canvas


FIGURE = Figure(
    name="drift_heatmap",
    title="Drift by layer and step",
    section="Representations",
    tables=("drift_metrics",),
    caption=(
        "1 - CKA (linear, debiased: arXiv 2010.15327) between the hidden states of the base and of the "
        "tuned model on the same inputs, on one colour scale, logarithmic over at most three decades; light "
        "grey: no change. CKA is blind to rotation and isotropic scaling, and a few directions of large "
        "variance can dominate it: read it with the other measures of drift."
    )
    + FEW,
    draw=_draw,
)
