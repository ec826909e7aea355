"""Gradient norm by layer and step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import FEW, heatmap, log_colours, panels, run_styles, with_panels
from rankdrift.analysis.sources.observations import gradient_statistics


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    table = gradient_statistics(tables["gradient_analysis_results"], "layer")
    table = table[table["layer"] >= 0]
    if table.empty:
        raise NothingToDraw("the table gradient_analysis_results has no rows of level 'layer'")
    styles = run_styles(tables)
    runs = with_panels(table["run"].unique(), styles)
    canvas, axes = panels(len(runs), columns=min(len(runs), 2), height=3.0)
    for ax, run in zip(axes, runs, strict=True):
        grid = table[table["run"] == run].pivot_table(index="layer", columns="step", values="l2_norm")
        image = heatmap(ax, grid, log_colours(grid.to_numpy()), "layer")
        ax.set_title(styles[run].label)
        ax.set_xlabel("optimizer step")
        canvas.colorbar(image, ax=ax, label="L2 norm", aspect=25)
    return canvas


FIGURE = Figure(
    name="gradient_heatmap",
    title="Gradient by layer and step",
    section="Gradients",
    tables=("gradient_analysis_results",),
    caption=(
        "L2 norm of each layer's gradient, on a colour scale of its own for every run (logarithmic over "
        "more than a decade), because gradients of LoRA's factors and of full weights do not compare. A "
        "bright column is an unusual batch; a bright row is a layer that keeps being pushed."
    )
    + FEW,
    draw=_draw,
)
