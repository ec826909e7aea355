"""Differences between arms beside those between seeds of one arm: the negative control."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    few,
    few_ticks,
    panels,
    reference,
    symlog_if_wide,
    task_title,
)
from rankdrift.analysis.sources.observations import GENERAL_TEXT, of_contrast

COLOUR = "#0072B2"
LIGHT, DARK = "#e3e3e3", "#bdbdbd"
MOST = 24
"""Pairs above which those of the first arm alone are drawn, and no more of them."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    contrasts = of_contrast(tables["seed_contrasts"])
    if contrasts.empty:
        raise NothingToDraw("no two arms share a seed at their last checkpoints")
    measured = list(dict.fromkeys(zip(contrasts["task"], contrasts["metric"], strict=True)))
    contrasts = contrasts.assign(pair=contrasts["arm"] + " - " + contrasts["other_arm"])
    pairs = _drawn(contrasts)[::-1]
    canvas, axes = panels(len(measured), height=1.1 + 0.32 * len(pairs), share_y=True)
    for ax, (task, metric) in zip(axes, measured, strict=True):
        rows = contrasts[(contrasts["task"] == task) & (contrasts["metric"] == metric)]
        rows = rows.set_index("pair").reindex(pairs)
        _draw_contrasts(ax, rows)
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
        general = task == GENERAL_TEXT
        ax.set_title(task_title(task))
        ax.set_xlabel(f"difference in {'NLL (nats / token)' if general else metric}")
        few_ticks(ax)
        symlog_if_wide(ax.set_xscale, pd.concat([rows["low"], rows["high"], rows["difference"]]))
    axes[0].set_yticks(range(len(pairs)), pairs)
    axes[0].set_ylabel("arms")
    axes[0].set_ylim(-0.6, len(pairs) - 0.4)
    canvas.legend(handles=_handles(), loc="outside upper center", ncols=4)
    return canvas


def _drawn(contrasts: pd.DataFrame) -> list[str]:
    """Return all pairs of arms, or of many those of the first arm, evenly spaced."""
    pairs = list(contrasts["pair"].unique())
    first = contrasts[contrasts["arm"] == contrasts["arm"].iloc[0]]
    return pairs if len(pairs) <= MOST else few(list(first["pair"].unique()), MOST)


def _draw_contrasts(ax: Axes, rows: pd.DataFrame) -> None:
    places = np.arange(len(rows))
    for column, colour in (("control_largest", LIGHT), ("control_median", DARK)):
        reach = rows[column].to_numpy(dtype=float)
        ax.barh(places, 2 * reach, left=-reach, height=0.62, color=colour, linewidth=0)
    rows = rows.assign(place=places)
    known = rows["low"].notna() & rows["high"].notna()
    ax.hlines(rows["place"], rows["low"], rows["high"], color=COLOUR, linewidth=1.6)
    for found, face in ((rows[known], COLOUR), (rows[~known], "white")):
        ax.plot(found["difference"], found["place"], "o", color=COLOUR, markerfacecolor=face, zorder=3)
    ax.grid(False, axis="y")
    ax.use_sticky_edges = False  # else the bars would end at the frame
    ax.margins(x=0.08)


def _handles() -> list[Line2D | Patch]:
    return [
        reference("mean, 95 % t interval", linestyle="-", marker="o", color=COLOUR),
        reference("no interval", linestyle="", marker="o", color=COLOUR, markerfacecolor="white"),
        Patch(color=DARK, label="two seeds: median"),
        Patch(color=LIGHT, label="two seeds: largest"),
    ]


FIGURE = Figure(
    name="seed_control",
    title="Differences between arms, and between seeds",
    section="Learning",
    tables=("seed_contrasts",),
    caption=(
        "First minus second arm at the last checkpoints, paired by seed: mean with its 95 % t interval over "
        "seeds. Grey: the negative control, how much two seeds of one of these arms differ, in the median "
        "and at most. It speaks of single seeds, whose difference varies more than that of means over "
        "seeds. An open point has no interval: fewer than two seeds, or no spread among them. Where a "
        "few intervals are much wider than most, the axis is logarithmic beyond the narrow ones. Of more "
        "than 24 pairs those of the first arm are drawn, 24 at most, evenly spaced; the table has all."
    ),
    draw=_draw,
)
