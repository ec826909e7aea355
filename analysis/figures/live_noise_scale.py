"""The noise scale of the gradient, from the micro-batches of training steps."""

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
from rankdrift.analysis.sources.observations import noise_scales, tuned_rows


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    scales = noise_scales(tuned_rows(tables["live_noise"]))
    if scales["noise_scale"].isna().all():
        raise NothingToDraw("the table live_noise has no step of several micro-batches with a defined scale")
    styles = run_styles(tables)
    canvas, axes = panels(1, columns=1, height=3.2)
    draw_runs(axes[0], scales, "step", "noise_scale", styles)
    axes[0].axhline(scales["targets"].median(), color="#6b6b6b", linestyle="--", linewidth=1)
    log_if_positive(axes[0], scales["noise_scale"])
    axes[0].set_ylabel(r"noise scale $S / |G|^2$ (targets)")
    whole_numbers(axes[0], "optimizer step")
    legend(canvas, scales["run"].unique(), styles, reference("targets of a step"))
    return canvas


FIGURE = Figure(
    name="live_noise_scale",
    title="Noise scale while training",
    section="Gradients",
    tables=("live_noise",),
    caption=(
        "How many targets a batch needs for its noise to be as large as its gradient (arXiv 1812.06162), by "
        "differences between the micro-batches of the probed steps up to there. Below the dashed line a "
        "step's mean gradient is mostly signal. LoRA's is that of its factors. Micro-batches of rows that "
        "were put together by length differ a little more than rows at random would."
    ),
    draw=_draw,
)
