"""Which layers moved when: the change of each layer's update from checkpoint to checkpoint."""

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
from rankdrift.analysis.sources.observations import tuned_rows, update_sizes
from rankdrift.models.families import ATTENTION, MLP

GROUPS = {"attention": ATTENTION, "mlp": MLP}


def movement(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return a row a run, group, layer and checkpoint: ``moved``, since the one before (or the base).

    | ||W_t - W_0|| - ||W_s - W_0|| | / ||W_0||: zero where nothing trained, and at most how far it moved.
    """
    group = {module: name for name, modules in GROUPS.items() for module in modules}
    rows = spectra.assign(group=spectra["module"].map(group)).dropna(subset=["group"])
    sizes = update_sizes(rows, by=("group", "layer")).sort_values("step")
    before = sizes.groupby(["run", "group", "layer"])["relative_update_norm"].shift(fill_value=0.0)
    return sizes.assign(moved=(sizes["relative_update_norm"] - before).abs())


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    spectra = tuned_rows(tables["svd_analysis_results"])
    if spectra.empty:
        raise NothingToDraw("the table svd_analysis_results has no trained checkpoint")
    moved = movement(spectra)
    styles = run_styles(tables)
    runs = with_panels(moved["run"].unique(), styles)
    most_steps = int(moved.groupby("run")["step"].nunique().max())
    places = [(run, group) for run in runs for group in GROUPS]
    canvas, axes = panels(len(places), columns=2, height=1.2 + 0.12 * most_steps)
    norm = log_colours(moved["moved"].to_numpy())
    for ax, (run, group) in zip(axes, places, strict=True):
        own = moved[(moved["run"] == run) & (moved["group"] == group)]
        grid = own.pivot_table(index="step", columns="layer", values="moved")
        image = heatmap(ax, grid, norm, "step")
        ax.set_title(f"{styles[run].label}: {group}")
    for ax in axes[-2:]:
        ax.set_xlabel("layer")
    shared_bar(canvas, image, axes, r"change of $\|\Delta W\| / \|W_0\|$")
    return canvas


FIGURE = Figure(
    name="layer_movement",
    title="Which layers moved when",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Absolute change of the update's relative norm since the checkpoint before (the first: since the "
        "base), taken over the projections of a layer's attention and MLP, on one colour scale, logarithmic "
        "over at most three decades; light grey: no change, so that what rests in a phase is seen. It is a "
        "lower bound of how far the weights moved, which may turn without growing."
    )
    + FEW,
    draw=_draw,
)
