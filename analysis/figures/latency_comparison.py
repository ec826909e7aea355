"""How long a token takes, by how the model is served, and how many times as long as merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import GREY, panels

COLOURS = {
    "base": "#555555",
    "full": "#D55E00",
    "merged": "#0072B2",
    "unmerged": "#56B4E9",
    "mixed": "#009E73",
}
TITLES = {
    "first_token": "first token",
    "further_token": "further token",
    "classification": "classification",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    rows = tables["deployment_benchmark_summary"]
    rows = rows[rows["quantity"].isin(TITLES)]
    if rows.empty:
        raise NothingToDraw("no request was timed")
    rows = rows.assign(model=list(map(_named, rows["arm"], rows["way"])))
    ways, quantities = list(COLOURS), list(TITLES)
    place = rows["way"].map(lambda way: ways.index(way) if way in ways else len(ways))
    models = list(dict.fromkeys(rows.assign(place=place).sort_values("place", kind="stable")["model"]))
    place = rows["quantity"].map(quantities.index)
    rows = rows.assign(place=place).sort_values(["load", "batch", "prompt_tokens", "place"], kind="stable")
    requests: list[Any] = list(rows.groupby(["quantity", "load", "batch", "prompt_tokens"], sort=False))
    canvas, axes = panels(min(len(requests), 4), height=1.0 + 0.34 * len(models), share_y=True)
    for ax, (request, found) in zip(axes, requests, strict=False):
        _draw_request(ax, found, models)
        ax.set_title(_titled(*request), fontsize=9)
    axes[0].set_ylabel("model, as served")
    axes[0].set_yticks(range(len(models)), models)  # one order in all panels, which share the axis
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    return canvas


def _named(arm: str, way: str) -> str:
    return arm if arm == way or way == "full" else f"{arm}, {way}"


def _titled(quantity: str, load: str, batch: int, prompt: int) -> str:
    asked = load or f"{batch} at once, prompt of {prompt}"
    return f"{TITLES[quantity]}\n{asked}"


def _draw_request(ax: Axes, rows: pd.DataFrame, models: list[str]) -> None:
    places, middle = np.array(list(map(models.index, rows["model"]))), 1e3 * rows["p50"].to_numpy()
    ends = np.vstack([middle - 1e3 * rows["low"], 1e3 * rows["high"] - middle])
    ax.barh(places, middle, color=[COLOURS.get(way, GREY) for way in rows["way"]], height=0.68)
    ax.errorbar(
        middle, places, xerr=np.nan_to_num(ends), fmt="none", ecolor="#222222", elinewidth=1.0, capsize=2
    )
    for place, value, end, ratio in zip(places, middle, ends[1], rows["ratio"], strict=True):
        said = f" {value:.3g}" + (f"  ({ratio:.2f}x)" if ratio == ratio else "")
        ax.text(np.nan_to_num(end) + value, place, said, va="center", fontsize=8, color=GREY)
    ax.set_xlim(0, 1.45 * float(np.nanmax(middle + np.nan_to_num(ends[1]))))
    ax.set_xlabel("milliseconds")
    ax.grid(visible=False, axis="y")


FIGURE = Figure(
    name="latency_comparison",
    title="Time of an answer, by how the model is served",
    section="Deployment",
    tables=("deployment_benchmark_summary",),
    caption=(
        "Medians with 95 % intervals (whole rounds resampled), and in brackets how many times as long as the "
        "merged model takes for the same request. Of a batch the time is that of all its rows together. "
        "Of more than four requests the smallest are drawn; the table has all. Milliseconds belong to the "
        "machine and the engine; do not compare them with another benchmark's."
    ),
    draw=_draw,
)
