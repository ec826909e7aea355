"""Rank of the update by module, as a share of what noise gives and of what is possible."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    RunStyle,
    from_zero,
    in_order,
    legend,
    panels,
    reference,
    run_styles,
)
from rankdrift.analysis.sources.observations import last_checkpoints, of_blocks, rank_shares

SHARES = {"null_share": "entropy rank / noise's", "bound_share": "entropy rank / largest possible"}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    table = rank_shares(of_blocks(last_checkpoints(tables["svd_analysis_results"])))
    if table.empty:
        raise NothingToDraw("no matrix in the table svd_analysis_results differs from the base")
    styles = run_styles(tables)
    canvas, axes = panels(len(SHARES), height=3.2, share_y=True)
    for ax, (column, label) in zip(axes, SHARES.items(), strict=True):
        _draw_share(ax, table, column, styles)
        ax.set_title(label)
        from_zero(ax, table[column], least=1)
    axes[0].axhline(1, color="#555555", linestyle=":", linewidth=1.2)
    axes[0].set_ylabel("share")
    legend(canvas, table["run"].unique(), styles, reference("noise", linestyle=":"))
    return canvas


def _draw_share(ax: Axes, table: pd.DataFrame, column: str, styles: Mapping[str, RunStyle]) -> None:
    modules = list(table["module"].unique())
    runs = in_order(table["run"].unique(), styles)
    offsets = (np.arange(len(runs)) - (len(runs) - 1) / 2) * 0.7 / len(runs)
    for run, offset in zip(runs, offsets, strict=True):
        grouped = table[table["run"] == run].groupby("module")[column]
        low, middle, high = (grouped.quantile(q).reindex(modules).to_numpy() for q in (0.25, 0.5, 0.75))
        place = np.arange(len(modules)) + offset
        bars = np.stack([middle - low, high - middle])
        ax.errorbar(place, middle, yerr=bars, fmt=styles[run].marker, color=styles[run].colour, capsize=2)
    ax.set_xticks(range(len(modules)), [module.removesuffix("_proj") for module in modules])
    ax.set_xlabel("module (projection)")


FIGURE = Figure(
    name="rank_by_module",
    title="Rank of the update by module",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Entropy rank of ΔW at the last checkpoint, median over layers with the quartiles as bars. Left: "
        "divided by what Gaussian noise of that shape (for LoRA: Gaussian BA of that r) gives, so that 1 "
        "means no more structure than noise. Right: divided by the largest possible rank, min(rows, "
        "columns, r): how much of its room a method uses."
    ),
    draw=_draw,
)
