"""What a search tried: the value that decides over each setting, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    FULL_COLOURS,
    GREY,
    OTHER_COLOURS,
    few_ticks,
    panels,
    put_legend,
    reference,
    symlog_if_wide,
)

FULL = "full"


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    rows = tables["search_trials"].dropna(subset=["value"])
    if rows.empty:
        raise NothingToDraw("no trial of the search came to a value")
    colours = _colours(tables["search_trials"])
    settings = list(dict.fromkeys(rows["setting"]))
    canvas, axes = panels(len(settings), height=3.3, share_y=True)
    for ax, setting in zip(axes, settings, strict=True):
        _draw_setting(ax, rows[rows["setting"] == setting], colours)
        ax.set_xlabel(setting)
    axes[0].set_ylabel(str(rows["judged_by"].iloc[0]))
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="-", label=arm) for arm, colour in colours.items()
    ]
    put_legend(canvas, [*handles, *_signs()])
    return canvas


def _colours(table: pd.DataFrame) -> dict[str, str]:
    """Return a colour an arm, warm for full fine-tuning, as in all figures."""
    arms = table.drop_duplicates("arm")
    families = (arms[arms["method"] == FULL], FULL_COLOURS), (arms[arms["method"] != FULL], OTHER_COLOURS)
    found = {
        arm: palette[place % len(palette)]
        for family, palette in families
        for place, arm in enumerate(family["arm"])
    }
    return {arm: found[arm] for arm in arms["arm"]}


def _draw_setting(ax: Axes, rows: pd.DataFrame, colours: Mapping[str, str]) -> None:
    choices = list(dict.fromkeys(rows["chosen"])) if rows["at"].isna().any() else []
    if choices:
        rows = rows.assign(at=rows["chosen"].map(choices.index).astype(float))
        ax.set_xticks(range(len(choices)), choices)
    for arm, colour in colours.items():
        _draw_arm(ax, rows[rows["arm"] == arm].sort_values("at"), colour, joined=not choices)
    if (rows["scale"] == "log").any():
        ax.set_xscale("log")
    elif not choices:
        few_ticks(ax)
    symlog_if_wide(ax.set_yscale, rows["value"])


def _draw_arm(ax: Axes, rows: pd.DataFrame, colour: str, joined: bool) -> None:
    done, pruned = rows[rows["state"] == "done"], rows[rows["state"] == "pruned"]
    style: dict[str, Any] = {"color": colour, "marker": "o", "linestyle": "-" if joined else ""}
    ax.plot(done["at"], done["value"], **style, linewidth=1.0)
    ax.plot(pruned["at"], pruned["value"], color=colour, marker="o", linestyle="", markerfacecolor="white")
    for _, row in done[done["stderr"].notna()].iterrows():
        ax.errorbar(row["at"], row["value"], yerr=row["stderr"], color=colour, capsize=1.5, linewidth=0.9)
    best = done[done["best"] == 1]
    ax.plot(best["at"], best["value"], color=colour, marker="*", markersize=13, linestyle="", zorder=4)


def _signs() -> Sequence[Line2D]:
    return [
        reference("best", linestyle="", marker="*", markersize=11, color=GREY),
        reference("pruned", linestyle="", marker="o", color=GREY, markerfacecolor="white"),
    ]


FIGURE = Figure(
    name="search",
    title="What the search tried",
    section="Search",
    tables=("search_trials",),
    caption=(
        "The value that decides, after a trial's last step, over each setting that was searched; where "
        "several were searched at once, the others differ too. Lines join the trials that were carried out "
        "to their end, bars are a standard error over the search's seeds. Open points were pruned: their "
        "value is where they ended, and does not compare with the others'. What could not be trained is not "
        "shown. A flat bottom says that the setting matters little there; a best point at an end, that the "
        "range was too narrow."
    ),
    draw=_draw,
)
