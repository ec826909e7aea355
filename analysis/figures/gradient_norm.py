"""Statistics of the whole gradient by step."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    draw_runs,
    from_zero,
    legend,
    log_if_positive,
    panels,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import gradient_statistics

STATISTICS = {
    "l2_norm": "L2 norm",
    "rms": "root mean square",
    "mean_abs": "mean |g|",
    "zero_fraction": "share of exact zeros",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    whole = gradient_statistics(tables["gradient_analysis_results"], "global")
    if whole.empty:
        raise NothingToDraw("the table gradient_analysis_results has no rows of level 'global'")
    styles = run_styles(tables)
    canvas, axes = panels(len(STATISTICS), height=2.5)
    for ax, (column, label) in zip(axes, STATISTICS.items(), strict=True):
        draw_runs(ax, whole, "step", column, styles)
        ax.set_ylabel(label)
        whole_numbers(ax, "optimizer step")
        if column == "zero_fraction":
            from_zero(ax, whole[column])
        else:
            log_if_positive(ax, whole[column])
    legend(canvas, whole["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="gradient_norm",
    title="The whole gradient",
    section="Gradients",
    tables=("gradient_analysis_results",),
    caption=(
        "The accumulated gradient of the whole global batch before clipping, over all parameters that "
        "train. LoRA's runs over its factors A and B, full fine-tuning's over the weights: the two live in "
        "different spaces and their sizes do not compare; their courses do. Exact zeros in LoRA's A at the "
        "first step come from B = 0."
    ),
    draw=_draw,
)
