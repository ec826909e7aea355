"""Intruder dimensions over all thresholds and numbers of vectors, beside what random directions give."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._matrices import write_cells
from rankdrift.analysis.figures._style import (
    MOST_PANELS,
    arms_in_order,
    columns_for,
    few,
    heatmap,
    log_colours,
    panels,
    run_styles,
    shared_bar,
)
from rankdrift.analysis.sources.observations import intruder_shares, last_checkpoints, with_arms

MOST_WRITTEN = 6
"""Panels above which counts in the cells could not be read."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = last_checkpoints(tables["intruder_dimensions"])
    shares = intruder_shares(last)
    if shares.empty:
        raise NothingToDraw("the table intruder_dimensions has no trained checkpoint with defined vectors")
    arms = few(arms_in_order(with_arms(last), run_styles(tables)), MOST_PANELS - 1)
    count = len(arms) + 1
    canvas, axes = panels(count, height=2.9)
    norm = log_colours(pd.concat([shares["share"], shares["share_random"]]).to_numpy())
    for number, (ax, arm) in enumerate(zip(axes, arms, strict=False)):
        rows = shares[shares["arm"] == arm]
        image = heatmap(ax, _grid(rows, "share"), norm, "")
        if count <= MOST_WRITTEN:
            write_cells(ax, image, _grid(rows, "count").map(_counted), size=6.5)
        ax.set_title(arm)
        ax.set_ylabel("" if number % columns_for(count) else "threshold of |cosine|")
    heatmap(axes[-1], _grid(shares.drop_duplicates(["threshold", "k"]), "share_random"), norm, "")
    axes[-1].set_title("random directions")
    for ax in axes:
        ax.set_xlabel("leading vectors k")
    shared_bar(canvas, image, axes, "share that are intruders")
    return canvas


def _grid(rows: pd.DataFrame, values: str) -> pd.DataFrame:
    return rows.pivot(index="threshold", columns="k", values=values)


def _counted(count: float) -> str:
    """Return a count that fits into a cell."""
    if count != count:
        return ""
    return f"{count / 1000:.1f}k" if count >= 1000 else f"{count:.0f}"


FIGURE = Figure(
    name="intruder_grid",
    title="Intruder dimensions over thresholds and numbers of vectors",
    section="Weights",
    tables=("intruder_dimensions",),
    caption=(
        "Share of the k leading singular vectors of W, left and right, of all matrices in the blocks, whose "
        "largest |cosine| with the base's vectors is below the threshold, at the last checkpoint; light "
        "grey: none. The number in a cell is the count in one model (mean over seeds; with more than five "
        "arms left out). Of more than eleven arms eleven are drawn, evenly spaced in the order of the "
        "report. The last panel is what random directions in place of the vectors would give: nearly all "
        "of them are intruders at any usual threshold, so a count says that vectors are new, not what they "
        "do. Higher up and further right the leading vectors reach the bulk of nearly equal "
        "singular values, where they mix freely and are flagged without meaning."
    ),
    draw=_draw,
)
