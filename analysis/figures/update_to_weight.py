"""The size of a step's update over that of the weights, by group of parameters."""

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
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import tuned_rows

USUAL = 1e-3
"""A ratio that is usual in training from scratch."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    updates = tuned_rows(tables["live_updates"])
    rows = updates[(updates["level"] == "group") & updates["ratio"].notna()]
    if rows.empty:
        raise NothingToDraw("the table live_updates has no rows of level 'group'")
    rows = rows.assign(panel=(rows["group"] + " " + rows["factor"]).str.strip())
    names = list(rows["panel"].unique())
    styles = run_styles(tables)
    canvas, axes = panels(len(names), height=2.5)
    for ax, name in zip(axes, names, strict=True):
        own = rows[rows["panel"] == name]
        draw_runs(ax, own, "step", "ratio", styles)
        log_if_positive(ax, own["ratio"])
        ax.axhline(USUAL, color="#6b6b6b", linestyle=":", linewidth=1)
        ax.set_title(name)
        ax.set_ylabel("update / weight")
        whole_numbers(ax, "optimizer step")
    legend(canvas, rows["run"].unique(), styles, reference("1e-3", linestyle=":"))
    return canvas


FIGURE = Figure(
    name="update_to_weight",
    title="Size of updates over size of weights",
    section="Gradients",
    tables=("live_updates",),
    caption=(
        "Norm of a step's update over the norm of the weights after it, by group of parameters, LoRA's "
        "factors A and B apart. About 1e-3 (dotted) is a rule of thumb of training from scratch. LoRA's "
        "B begins at zero, so that it is its first update after one step."
    ),
    draw=_draw,
)
