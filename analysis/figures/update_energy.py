"""Where the update is: share of its energy by layer and module."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import FEW, heatmap, panels, run_styles, shared_bar, with_panels
from rankdrift.analysis.sources.observations import last_checkpoints, of_blocks


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = of_blocks(last_checkpoints(tables["svd_analysis_results"]))
    last = last.assign(energy=last["update_norm"] ** 2)
    last = last[last.groupby("run")["energy"].transform("sum") > 0]
    if last.empty:
        raise NothingToDraw("no trained checkpoint differs from the base model")
    last["share"] = 100 * last["energy"] / last.groupby("run")["energy"].transform("sum")
    styles = run_styles(tables)
    runs = with_panels(last["run"].unique(), styles)
    modules = list(last["module"].unique())[::-1]
    canvas, axes = panels(len(runs), columns=1 if len(runs) <= 3 else 2, height=2.0)
    norm = Normalize(0, float(last["share"].max()))
    for ax, run in zip(axes, runs, strict=True):
        grid = last[last["run"] == run].pivot_table(index="module", columns="layer", values="share")
        image = heatmap(ax, grid.reindex(modules), norm, "")
        ax.set_title(styles[run].label)
    axes[-1].set_xlabel("layer")
    shared_bar(canvas, image, axes, r"share of $\|\Delta W\|^2$ (%)")
    return canvas


FIGURE = Figure(
    name="update_energy",
    title="Where the update is",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Share of the squared Frobenius norm of the blocks' update in each layer and module at the last "
        "checkpoint, in per cent of its own run (embeddings and heads have no layer and are left out); "
        "light grey: no such matrix, or no update there. Larger matrices hold more energy for that reason "
        "alone."
    )
    + FEW,
    draw=_draw,
)
