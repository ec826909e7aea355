"""Gradient, update and drift of the layers beside each other."""

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
from rankdrift.analysis.sources.observations import gradient_statistics, last_checkpoints, tuned_rows


def _layers(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return what is drawn: label -> rows of run, layer and value."""
    drawn = {
        "median gradient norm": _median(
            gradient_statistics(tuned_rows(tables[GRADIENTS]), "layer"), "l2_norm"
        )
    }
    if "live_updates" in tables:
        updates = tuned_rows(tables["live_updates"])
        updates = updates[updates["level"] == "layer"]
        squares = updates.assign(up=updates["update_norm"] ** 2, of=updates["weight_norm"] ** 2)
        sums = squares.groupby(["run", "layer", "step"])[["up", "of"]].sum().reset_index()
        sums["ratio"] = (sums["up"] / sums["of"].where(sums["of"] > 0)) ** 0.5
        drawn["median update / weight"] = _median(sums, "ratio")
    if "live_drift" in tables:
        last = last_checkpoints(tables["live_drift"])
        last = last[last["level"] == "layer"]
        drawn[r"last $\|\Delta W\| / \|W_0\|$"] = last.assign(value=last["relative_update_norm"])
    return drawn


def _median(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return rows.groupby(["run", "layer"])[column].median().rename("value").reset_index()


GRADIENTS = "gradient_analysis_results"


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    drawn = {label: rows[rows["layer"] >= 0] for label, rows in _layers(tables).items()}
    if all(rows.empty for rows in drawn.values()):
        raise NothingToDraw(f"the table {GRADIENTS} has no rows of level 'layer'")
    styles = run_styles(tables)
    canvas, axes = panels(len(drawn), columns=len(drawn), height=3.0)
    for ax, (label, rows) in zip(axes, drawn.items(), strict=True):
        draw_runs(ax, rows, "layer", "value", styles)
        log_if_positive(ax, rows["value"])
        ax.set_ylabel(label)
        whole_numbers(ax, "layer")
    legend(canvas, next(iter(drawn.values()))["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="layer_comparison",
    title="Layers compared",
    section="Gradients",
    tables=(GRADIENTS,),
    caption=(
        "By layer: the median over the probed steps of the gradient's norm and of the size of an update over "
        "that of the weights it changes, and how far the layer has come in the end. Gradients and weights of "
        "LoRA are its factors': compare their courses over layers, not their heights, with full fine-tuning."
    ),
    draw=_draw,
)
