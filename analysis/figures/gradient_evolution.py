"""Gradient by parameter group and step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    draw_runs,
    legend,
    log_if_positive,
    panels,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import gradient_statistics

GROUPS = ("attention", "mlp", "embed", "norm", "head")


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    table = gradient_statistics(tables["gradient_analysis_results"], "group")
    groups = [group for group in GROUPS if group in set(table["group"])]
    if not groups:
        raise NothingToDraw("the table gradient_analysis_results has no rows of level 'group'")
    styles = run_styles(tables)
    canvas, axes = panels(len(groups), height=2.5)
    for ax, group in zip(axes, groups, strict=True):
        rows = table[table["group"] == group]
        draw_runs(ax, rows, "step", "rms", styles)
        log_if_positive(ax, rows["rms"])
        ax.set_title(group)
        ax.set_ylabel("RMS gradient")
        whole_numbers(ax, "optimizer step")
    legend(canvas, table["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="gradient_evolution",
    title="Gradient by parameter group",
    section="Gradients",
    tables=("gradient_analysis_results",),
    caption=(
        "Root mean square of the gradient's entries in each group of parameters (norm over the square root "
        "of their number, so that groups of different size compare within one run). LoRA trains no "
        "embeddings, norms or head unless it is told to, and is then absent there. Between methods compare "
        "the course, not the height."
    ),
    draw=_draw,
)
