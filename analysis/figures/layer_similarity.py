"""CKA of every layer of the base with every layer of the tuned model."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._matrices import column_inches
from rankdrift.analysis.figures._style import (
    FEW,
    columns_for,
    few_ticks,
    heatmap,
    panels,
    run_styles,
    shared_bar,
    with_panels,
)
from rankdrift.analysis.sources.observations import last_checkpoints


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = last_checkpoints(tables["layer_similarity"])
    if last["cka"].isna().all():
        raise NothingToDraw("the table layer_similarity has no trained checkpoint with a defined CKA")
    styles = run_styles(tables)
    runs = with_panels(last["run"].unique(), styles)
    columns = max(columns_for(len(runs)), 2)
    canvas, axes = panels(len(runs), columns=columns, height=0.9 * column_inches(columns))
    for number, (ax, run) in enumerate(zip(axes, runs, strict=True)):
        rows = last[last["run"] == run]
        grid = rows.pivot(index="tuned_layer", columns="base_layer", values="cka")
        image = heatmap(ax, grid, Normalize(0, 1), "" if number % columns else "layer of the tuned model")
        ax.set_title(styles[run].label)
        ax.set_xlabel("layer of the base")
        few_ticks(ax)
    shared_bar(canvas, image, axes, "debiased CKA")
    return canvas


FIGURE = Figure(
    name="layer_similarity",
    title="Layers of base and tuned model against each other",
    section="Representations",
    tables=("layer_similarity",),
    caption=(
        "Debiased linear CKA (arXiv 2010.15327) of mean-pooled hidden states at the last checkpoint; layer "
        "0 is what enters the first block; light grey: 0 or less, or undefined. Neighbouring layers of one "
        "model are alike to begin with, so bright blocks around the diagonal are no drift: drift is a "
        "diagonal that darkens, or a row whose brightest cell has left the diagonal."
    )
    + FEW,
    draw=_draw,
)
