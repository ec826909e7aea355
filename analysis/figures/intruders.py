"""Intruder dimensions by step and by layer, with the energy they hold."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    RunStyle,
    draw_runs,
    from_zero,
    legend,
    panels,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import intruder_totals, last_checkpoints, tuned_rows

BY_LAYER = {
    "intruders_left": "left vectors, last checkpoint",
    "intruders_right": "right vectors, last checkpoint",
    "intruder_energy_left": "energy share, left",
    "sigma1_ratio": r"largest $\sigma_1(\Delta W) / \sigma_1(W_0)$",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    spectra = tuned_rows(tables["svd_analysis_results"])
    if spectra.empty:
        raise NothingToDraw("the table svd_analysis_results has no trained checkpoint")
    styles = run_styles(tables)
    canvas, axes = panels(6, columns=2, height=2.3)
    by_step = intruder_totals(spectra)
    for ax, side in zip(axes[:2], ("left", "right"), strict=True):
        _draw_counts(ax, by_step, "step", f"intruders_{side}", styles)
        ax.set_title(f"{side} vectors, all matrices")
        whole_numbers(ax, "optimizer step")
    by_layer = intruder_totals(last_checkpoints(spectra), by=("layer",))
    for ax, (column, title) in zip(axes[2:], BY_LAYER.items(), strict=True):
        _draw_counts(ax, by_layer, "layer", column, styles)
        ax.set_title(title)
        whole_numbers(ax, "layer")
    for ax in axes[:4]:
        ax.set_ylabel("intruders")
    axes[4].set_ylabel(r"mean share of top $k$'s $\sigma^2$")
    axes[5].set_ylabel("ratio")
    legend(canvas, spectra["run"].unique(), styles)
    return canvas


def _draw_counts(ax: Axes, table: pd.DataFrame, x: str, y: str, styles: Mapping[str, RunStyle]) -> None:
    draw_runs(ax, table, x, y, styles)
    from_zero(ax, table[y])


FIGURE = Figure(
    name="intruders",
    title="Intruder dimensions",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Among the top k singular vectors of the tuned weight, those whose cosine with every singular "
        "vector of the base weight is below the threshold (arXiv 2410.21228, Definition 3.1; k and "
        "threshold are in the table's metadata). Counts saturate and near-degenerate singular values "
        "inflate them, so that two more stand beside them: their share of the top k's squared singular "
        "values, and the ratio of the largest singular values of update and base. The name says that a "
        "vector is spread over many base directions, not that it lies outside the base's span, nor that it "
        "harms."
    ),
    draw=_draw,
)
