"""How like the base's the tuned spectrum is: values, principal angles, overlap of leading subspaces."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    draw_runs,
    legend,
    panels,
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import RUN_KEYS, last_checkpoints, of_blocks

COLUMNS = (
    "spearman_sigma",
    "angle_left_max",
    "angle_right_max",
    "overlap_left",
    "overlap_right",
    "overlap_random",
)


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = of_blocks(last_checkpoints(tables["svd_analysis_results"]))
    if last.empty:
        raise NothingToDraw("the table svd_analysis_results has no trained checkpoint")
    by_layer = last.groupby([*RUN_KEYS, "layer"], as_index=False)[list(COLUMNS)].mean()
    by_layer["disorder"] = 1 - by_layer["spearman_sigma"]
    by_layer["overlap"] = (by_layer["overlap_left"] + by_layer["overlap_right"]) / 2
    for side in ("left", "right"):
        by_layer[f"angle_{side}"] = np.degrees(by_layer[f"angle_{side}_max"])
    styles = run_styles(tables)
    canvas, axes = panels(4, height=2.6)
    shown = {
        "disorder": "1 - Spearman of gains",
        "overlap": "overlap of leading subspaces",
        "angle_left": "largest angle, left (degrees)",
        "angle_right": "largest angle, right (degrees)",
    }
    for ax, (column, label) in zip(axes, shown.items(), strict=True):
        draw_runs(ax, by_layer, "layer", column, styles)
        ax.set_ylabel(label)
        whole_numbers(ax, "layer")
    if (by_layer["disorder"] > 0).any():
        axes[0].set_yscale("log", nonpositive="mask")
    chance = by_layer.groupby("layer")["overlap_random"].mean()
    axes[1].plot(chance.index, chance, color=GREY, linestyle="--", linewidth=1.2)
    legend(canvas, last["run"].unique(), styles, reference("overlap by chance"))
    return canvas


FIGURE = Figure(
    name="spectrum_similarity",
    title="Similarity to the base spectrum",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Means over the modules of a layer at the last checkpoint: what rank correlation the tuned weight's "
        "gains |u^T W v| along the base's own singular vectors have lost against the base's singular values "
        "(none is lost where a point is missing); "
        "overlap of the leading singular subspaces with the base's (1: the same, dashed: two random "
        "subspaces); and the largest principal angle between them. A large single angle with an overlap "
        "near 1 is one direction exchanged, often among nearly equal singular values, not a rotation of the "
        "whole subspace."
    ),
    draw=_draw,
)
