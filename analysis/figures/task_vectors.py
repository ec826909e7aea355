"""Task vectors of the runs against each other: direction, and conflict of signs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._matrices import labelled_matrix, symmetric
from rankdrift.analysis.figures._style import RunStyle, in_order, panels, run_styles
from rankdrift.analysis.sources.observations import last_pairs, tuned_rows

MOST_BESIDE = 8
"""Runs above which the two squares stand one above the other."""
MOST_WRITTEN = 24
"""Runs above which numbers in the cells could not be read."""
WHITE_BELOW = 4.0
"""Colours of cosines reach at least so many standard deviations of unrelated directions."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    pairs = last_pairs(tuned_rows(tables["task_vectors"])).dropna(subset=["cosine"])
    if pairs.empty:
        raise NothingToDraw("the table task_vectors has no pair of runs that both differ from the base")
    styles = run_styles({"first": pairs, "second": _seconds(pairs)})
    runs = in_order(styles, styles)
    beside = len(runs) <= MOST_BESIDE
    height = 1.6 + min(0.35 * len(runs), 1.9) if beside else 1.2 + min(0.29 * len(runs), 8.0)
    canvas, axes = panels(2, columns=2 if beside else 1, height=height)
    null = float(pairs["cosine_null"].max())
    cosines = _square(pairs, "cosine", runs)
    norm = symmetric(cosines.to_numpy(), WHITE_BELOW * null)
    image = _draw_square(axes[0], cosines, norm, styles, "{:.2f}")
    axes[0].set_title(f"cosine (unrelated: 0 ± {1.96 * null:.1g})")
    canvas.colorbar(image, ax=axes[0], shrink=0.8)
    conflicts = 100 * _square(pairs, "sign_conflict", runs)
    image = _draw_square(axes[1], conflicts, Normalize(0, 100), styles, "{:.0f}")
    axes[1].set_title("unlike signs, % (unrelated: 50)")
    canvas.colorbar(image, ax=axes[1], shrink=0.8)
    return canvas


def _seconds(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the second runs' identity as if they were first."""
    names = [name for name in pairs.columns if name.startswith("other_")]
    return pairs[names].rename(columns=lambda name: name.removeprefix("other_"))


def _square(pairs: pd.DataFrame, column: str, runs: list[str]) -> pd.DataFrame:
    """Return the values of both orders of each pair; undefined on the diagonal."""
    place = {run: number for number, run in enumerate(runs)}
    one, other = (pairs[name].map(place).to_numpy() for name in ("run", "other_run"))
    square = np.full((len(runs), len(runs)), np.nan)
    square[one, other] = square[other, one] = pairs[column]
    return pd.DataFrame(square, index=runs, columns=runs)


def _draw_square(
    ax: Axes, values: pd.DataFrame, norm: Normalize, styles: Mapping[str, RunStyle], number: str
) -> Any:
    places = range(1, len(values) + 1)
    named = [f"{styles[str(run)].label}  {place}" for run, place in zip(values, places, strict=True)]
    written = values.map(number.format).where(values.notna(), "").replace("-0.00", "0.00")
    texts = written if len(values) <= MOST_WRITTEN else written.map(lambda text: "")
    ax.set_xlabel("run (number)")
    ax.set_ylabel("run")
    return labelled_matrix(ax, values.set_axis(named).set_axis(places, axis=1), texts, norm)


FIGURE = Figure(
    name="task_vectors",
    title="Task vectors against each other",
    section="Weights",
    tables=("task_vectors",),
    caption=(
        "Updates of every two runs at their last checkpoints, all matrices together. Left: their cosine "
        "(arXiv 2212.04089), white where unrelated directions of that dimension would lie (1.96 standard "
        "deviations in the title; adapters that start from one and the same A are not unrelated). Right: "
        "of the entries among the largest 20 % of both updates, the share whose signs differ (as in TIES, "
        "arXiv 2306.01708). Runs that differ only in the seed say how alike two updates of one task are."
    ),
    draw=_draw,
)
