"""How far each layer has come from the base by step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import FEW, heatmap, log_colours, panels, run_styles, with_panels
from rankdrift.analysis.sources.observations import tuned_rows


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    layers = tuned_rows(tables["live_drift"])
    layers = layers[(layers["level"] == "layer") & (layers["layer"] >= 0)]
    if layers.empty:
        raise NothingToDraw("the table live_drift has no rows of level 'layer'")
    styles = run_styles(tables)
    runs = with_panels(layers["run"].unique(), styles)
    canvas, axes = panels(len(runs), columns=min(len(runs), 2), height=3.0)
    for ax, run in zip(axes, runs, strict=True):
        own = layers[layers["run"] == run]
        grid = own.pivot_table(index="layer", columns="step", values="relative_update_norm")
        image = heatmap(ax, grid, log_colours(grid.to_numpy()), "layer")
        ax.set_title(styles[run].label)
        ax.set_xlabel("optimizer step")
        canvas.colorbar(image, ax=ax, label=r"$\|\Delta W\| / \|W_0\|$", aspect=25)
    return canvas


FIGURE = Figure(
    name="layer_heatmap",
    title="Distance from the base by layer and step",
    section="Weights",
    tables=("live_drift",),
    caption=(
        "Norm of what a run has changed in a layer over the norm of the layer's weights that it changes, at "
        "every probed step, on a colour scale of its own for each run (logarithmic over more than a decade). "
        "A row that stays dark is a layer that hardly moves, or that a schedule lets rest."
    )
    + FEW,
    draw=_draw,
)
