"""Decay of the singular values of base, tuned and update in single matrices, with the noise of equal norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._null_spectra import noise_spectrum
from rankdrift.analysis.figures._style import GREY, RunStyle, in_order, legend, panels, reference, run_styles
from rankdrift.analysis.sources.observations import BASE, last_checkpoints

PREFERRED = ("q_proj", "o_proj", "down_proj")
"""Modules shown where the study has them: the attention's input and output, and the MLP's output."""
MOST_NOISE_DRAWN = 4
"""Runs above which bands of noise would hide the lines."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    sigma = tables["singular_values"]
    sigma = sigma[sigma["sigma"] > 0]
    last = last_checkpoints(sigma)
    updates = last[last["matrix"] == "update"]
    if updates.empty:
        raise NothingToDraw("the table singular_values has no trained checkpoint that differs from the base")
    shapes = last_checkpoints(tables["svd_analysis_results"])
    modules, layer = _chosen(updates)
    styles = run_styles(tables)
    canvas, axes = panels(2 * len(modules), columns=len(modules), height=3.0, share_y="row")
    for place, module in enumerate(modules):
        whole, update = axes[place], axes[len(modules) + place]
        base = sigma[(sigma["run"] == BASE) & (sigma["module"] == module) & (sigma["layer"] == layer)]
        here = last[(last["module"] == module) & (last["layer"] == layer)]
        _draw_whole(whole, base, here[here["matrix"] == "tuned"], styles)
        _draw_update(update, here[here["matrix"] == "update"], shapes, styles)
        whole.set_title(f"{module}, layer {layer}: W")
        update.set_title(f"{module}, layer {layer}: ΔW")
    # noise of a square matrix falls steeply at its end: the updates say how far down the axis goes
    shown = updates[(updates["layer"] == layer) & updates["module"].isin(modules)]
    axes[-1].set_ylim(bottom=float(shown["sigma"].min()) / 2)
    axes[0].set_ylabel("singular value")
    axes[len(modules)].set_ylabel("singular value")
    noise = reference("noise of equal norm, same shape and rank", linestyle="-", linewidth=6, alpha=0.35)
    legend(canvas, last["run"].unique(), styles, reference("base model", linestyle="-"), noise)
    return canvas


def _chosen(table: pd.DataFrame) -> tuple[list[str], int]:
    """Return the modules to show and the middle one of the layers that have them."""
    known = list(table["module"].unique())
    modules = [module for module in PREFERRED if module in known] or known[:3]
    layers = sorted(table[table["module"].isin(modules)]["layer"].unique())
    return modules, int(layers[len(layers) // 2])


def _draw_whole(ax: Axes, base: pd.DataFrame, tuned: pd.DataFrame, styles: Mapping[str, RunStyle]) -> None:
    ax.plot(base["index"] + 1, base["sigma"], color=GREY, linewidth=4, alpha=0.5)
    for run in in_order(tuned["run"].unique(), styles):
        rows = tuned[tuned["run"] == run].sort_values("index")
        ax.plot(
            rows["index"] + 1,
            rows["sigma"],
            color=styles[run].colour,
            linestyle=styles[run].line,
            linewidth=1.1,
        )
    _log_log(ax)


def _draw_update(
    ax: Axes, update: pd.DataFrame, shapes: pd.DataFrame, styles: Mapping[str, RunStyle]
) -> None:
    runs = in_order(update["run"].unique(), styles)
    for run in runs:
        rows = update[update["run"] == run].sort_values("index")
        style = styles[run]
        ax.plot(rows["index"] + 1, rows["sigma"], **style.of_line(len(rows)))
        if len(runs) <= MOST_NOISE_DRAWN:
            _draw_noise(ax, rows, shapes[shapes["run"] == run], style.colour)
    _log_log(ax)


def _draw_noise(ax: Axes, rows: pd.DataFrame, shapes: pd.DataFrame, colour: str) -> None:
    """Shade the range over draws of noise of this update's shape, rank bound and Frobenius norm."""
    first = rows.iloc[0]
    shape = shapes[(shapes["module"] == first["module"]) & (shapes["layer"] == first["layer"])]
    if shape.empty:
        return
    size = shape.iloc[0]
    norm = float(np.linalg.norm(rows["sigma"]))
    noise = noise_spectrum(int(size["update_rows"]), int(size["update_columns"]), int(first["rank"]), norm)
    place = np.arange(1, noise.shape[1] + 1)
    ax.fill_between(place, noise.min(axis=0), noise.max(axis=0), color=colour, alpha=0.3, linewidth=2.5)


def _log_log(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("index")


FIGURE = Figure(
    name="singular_value_decay",
    title="Singular value decay",
    section="Weights",
    tables=("singular_values", "svd_analysis_results"),
    caption=(
        "Singular values at the last checkpoint in the middle layer, both axes logarithmic. Above: the base "
        "weight (thick grey) and the tuned weight, which usually coincide. Below: the update ΔW. Shaded (up "
        "to four runs): the range over eight draws of Gaussian noise with the update's shape, rank bound "
        "and Frobenius norm. A curve that starts above its band and falls below it concentrates in a few "
        "directions; one that lies on its band has no more structure than noise. LoRA's update ends at its "
        "rank r by construction."
    ),
    draw=_draw,
)
