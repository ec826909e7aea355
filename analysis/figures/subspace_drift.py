"""How far the leading singular vectors turned: the measure that is safe, and the naive one beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    RunStyle,
    draw_runs,
    legend,
    panels,
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import (
    RUN_KEYS,
    last_checkpoints,
    nearest_count,
    of_blocks,
    of_changed,
)

MEASURES = {"vector_drift": "drift of the subspace", "naive_drift": r"naive: $\|U - U_0\| / 2\sqrt{k}$"}
SIDES = ("left", "right")
RANDOM_SIGNS = 0.5**0.5
"""Naive drift of unchanged vectors with random signs: half of them contribute 2 each."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = of_blocks(last_checkpoints(tables["subspace_drift"])).dropna(subset=list(MEASURES))
    last = of_changed(last, tables.get("svd_analysis_results"))
    if last.empty:
        raise NothingToDraw("the table subspace_drift has no matrix that differs from the base")
    last = last.assign(random=np.sqrt(1 - last["overlap_random"]))
    styles, count = run_styles(tables), nearest_count(last["k"])
    canvas, axes = panels(6, columns=3, height=2.6, share_y=True)
    for (row, (measure, label)), side in ((m, s) for m in enumerate(MEASURES.items()) for s in SIDES):
        ax = axes[3 * row + SIDES.index(side)]
        rows = last[(last["k"] == count) & (last["side"] == side)]
        _draw_means(ax, rows, "layer", measure, styles)
        ax.set_title(f"{side}, k = {count}")
        ax.set_ylabel(label if side == "left" else "")
        whole_numbers(ax, "layer")
    for ax, measure in zip(axes[2::3], MEASURES, strict=True):
        _draw_means(ax, last, "k", measure, styles)
        ax.set_xscale("log")
        ax.set_xticks(sorted(last["k"].unique()), sorted(last["k"].unique()))
        ax.minorticks_off()
        ax.set_title("left and right, all layers")
        ax.set_xlabel("leading vectors k")
    axes[0].set_ylim(0, 1.05)
    chance = (reference("unrelated subspaces"), reference("unchanged, signs by chance", linestyle=":"))
    legend(canvas, last["run"].unique(), styles, *chance)
    return canvas


def _draw_means(ax: Axes, rows: pd.DataFrame, x: str, measure: str, styles: Mapping[str, RunStyle]) -> None:
    """Draw means over matrices, with the level that means nothing: of the naive measure its own artefact."""
    means = rows.groupby([*RUN_KEYS, x], as_index=False)[[measure]].mean()
    draw_runs(ax, means, x, measure, styles)
    if measure == "naive_drift":
        ax.axhline(RANDOM_SIGNS, color=GREY, linestyle=":", linewidth=1.2)
    else:
        chance = rows.groupby(x)["random"].mean()
        ax.plot(chance.index, chance, color=GREY, linestyle="--", linewidth=1.2)


FIGURE = Figure(
    name="subspace_drift",
    title="Drift of the leading singular vectors",
    section="Weights",
    tables=("subspace_drift",),
    caption=(
        "Means over the modules of a layer that changed, at the last checkpoint. Above: root mean sin² of "
        "the principal angles between the spans of the k leading singular vectors of W and W0, which knows "
        "neither signs nor rotations within the span: 0 unchanged, 1 orthogonal; dashed: two unrelated "
        "subspaces. Below, for comparison with studies that print it: the distance of the vectors themselves "
        "over its maximum. Signs of singular vectors are arbitrary, and random ones alone give the dotted "
        "line where nothing has changed: only the upper row measures. Where the gap of the base's singular "
        "values is smaller than twice the update (column reliable), even a span may turn without meaning."
    ),
    draw=_draw,
)
