"""Drift of the representations by layer at the last checkpoint, by four measures."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    draw_errors,
    draw_runs,
    legend,
    panels,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import last_checkpoints, mean_states

MEASURES = {
    "cka": "debiased CKA",
    "relative_l2": r"$\|Y - X\| / \|X\|$",
    "cosine": "cosine, raw",
    "cosine_centered": "cosine, centred",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    last = mean_states(last_checkpoints(tables["drift_metrics"]))
    if last.empty:
        raise NothingToDraw("the table drift_metrics has no trained checkpoint")
    styles = run_styles(tables)
    canvas, axes = panels(len(MEASURES), columns=2, height=2.6)
    for ax, (column, label) in zip(axes, MEASURES.items(), strict=True):
        draw_runs(ax, last, "layer", column, styles)
        ax.set_ylabel(label)
        ax.ticklabel_format(axis="y", useOffset=False)
        whole_numbers(ax, "layer (0 = embeddings)")
    draw_errors(axes[0], last, "layer", "cka", "cka_stderr", styles)
    legend(canvas, last["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="drift_by_layer",
    title="Drift by layer",
    section="Representations",
    tables=("drift_metrics",),
    caption=(
        "Hidden states (mean over the tokens of an input) of the base X and the tuned model Y at the last "
        "checkpoint. CKA with 1.96 jackknife standard errors over inputs. The raw cosine is dominated by "
        "the mean that all inputs share; the centred one has it removed. The measures answer different "
        "questions (shape up to rotation, size of the move, direction) and need not agree. Neighbouring "
        "layers are not independent: the number of layers is no sample size."
    ),
    draw=_draw,
)
