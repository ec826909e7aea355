"""Drift by layer in each representation, with and without the dimensions of largest variance."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    draw_errors,
    draw_runs,
    legend,
    panels,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import last_checkpoints

REPRESENTATIONS = {"mean": "mean of the tokens", "last_token": "last token", "token": "every token"}
FEATURES = {"all": "all dimensions", "without_top": "without the largest"}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = last_checkpoints(tables["drift_metrics"])
    if last["cka"].isna().all():
        raise NothingToDraw("the table drift_metrics has no trained checkpoint with a defined CKA")
    styles = run_styles(tables)
    canvas, axes = panels(6, columns=3, height=2.6, share_y=True)
    places = [(features, name) for features in FEATURES for name in REPRESENTATIONS]
    for ax, (features, name) in zip(axes, places, strict=True):
        rows = last[(last["features"] == features) & (last["representation"] == name)]
        draw_runs(ax, rows, "layer", "cka", styles)
        draw_errors(ax, rows, "layer", "cka", "cka_stderr", styles)
        ax.set_title(f"{REPRESENTATIONS[name]},\n{FEATURES[features]}")
        ax.ticklabel_format(axis="y", useOffset=False)
        whole_numbers(ax, "layer (0 = embeddings)")
    for ax in axes[::3]:
        ax.set_ylabel("debiased CKA")
    legend(canvas, last["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="drift_representations",
    title="Drift by representation",
    section="Representations",
    tables=("drift_metrics",),
    caption=(
        "Debiased CKA of base and tuned model at the last checkpoint, with 1.96 jackknife standard errors "
        "over inputs (whole inputs are left out, tokens too, because the tokens of one input are not "
        "independent). A mean over tokens hides what moves single ones. Below: without the 1 % of the "
        "dimensions that vary most in the base, which can hold nearly all of the variance and with it the "
        "CKA: where the rows differ, the upper one speaks of those few dimensions."
    ),
    draw=_draw,
)
