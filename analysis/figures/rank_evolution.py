"""Rank of the update by step, against the rank that noise of its shape has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    RunStyle,
    draw_band,
    draw_runs,
    in_order,
    legend,
    log_if_positive,
    panels,
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import RUN_KEYS, changed_rows, of_blocks

RANKS = {"update_entropy_rank": "entropy rank of ΔW", "update_e90_energy": "rank of 90 % of ΔW's energy"}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    spectra = of_blocks(changed_rows(tables["svd_analysis_results"]))
    if spectra.empty:
        raise NothingToDraw("no matrix in the table svd_analysis_results differs from the base")
    styles = run_styles(tables)
    canvas, axes = panels(len(RANKS), height=3.3)
    for ax, (metric, label) in zip(axes, RANKS.items(), strict=True):
        _draw_rank(ax, spectra, metric, styles)
        ax.set_ylabel(label)
        whole_numbers(ax, "optimizer step")
    legend(
        canvas, spectra["run"].unique(), styles, reference("noise of the same shape and rank", linestyle=":")
    )
    return canvas


def _draw_rank(ax: Axes, spectra: pd.DataFrame, metric: str, styles: Mapping[str, RunStyle]) -> None:
    grouped = spectra.groupby([*RUN_KEYS, "step"])[metric]
    quartiles = grouped.quantile(np.array([0.25, 0.5, 0.75])).unstack().reset_index()
    quartiles = quartiles.rename(columns={0.25: "low", 0.5: "middle", 0.75: "high"})
    draw_band(ax, quartiles, "step", "low", "high", styles)
    draw_runs(ax, quartiles, "step", "middle", styles)
    nulls = spectra.groupby("run")[f"{metric}_null"].median()
    for run in in_order(nulls.index, styles):
        ax.axhline(nulls[run], color=styles[run].colour, linestyle=":", linewidth=1.3)
    log_if_positive(ax, pd.concat([quartiles["low"], nulls]))


FIGURE = Figure(
    name="rank_evolution",
    title="Rank of the update",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Median over the matrices of the blocks of two rank measures of ΔW, with the quartiles as band: "
        "the entropy rank (exponential of the entropy of the singular values over their sum, Roy & "
        "Vetterli 2007), and the number of singular values that carry 90 % of the sum of their squares. "
        "Dotted: what Gaussian noise of the same shape gives (for LoRA: Gaussian BA of the same r). The "
        "gap between LoRA and full fine-tuning is there by construction, because LoRA cannot exceed r; "
        "what tells something is the distance of each method to its own dotted line."
    ),
    draw=_draw,
)
