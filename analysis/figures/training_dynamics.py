"""Learning rate, gradient norm, speed and memory of the training itself."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    draw_runs,
    from_zero,
    legend,
    log_if_positive,
    panels,
    run_styles,
    symlog_if_wide,
    whole_numbers,
)

QUANTITIES = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm before clipping",
    "tokens_per_second": "tokens / second",
    "memory_gib": "memory (GiB)",
}


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    table = tables["training_metrics"]
    table = table[table["split"] == "train"]
    styles = run_styles(tables)
    shown = [column for column in QUANTITIES if table[column].notna().any()]
    if not shown:
        raise NothingToDraw(
            "no step of training was logged with learning rate, gradient norm, speed or memory"
        )
    canvas, axes = panels(len(shown))
    for ax, column in zip(axes, shown, strict=True):
        rows = table.dropna(subset=[column])
        draw_runs(ax, rows, "step", column, styles)
        ax.set_ylabel(QUANTITIES[column])
        whole_numbers(ax, "optimizer step")
        if column == "gradient_norm":
            log_if_positive(ax, rows[column])
        else:
            from_zero(ax, rows[column])
            ax.ticklabel_format(axis="y", scilimits=(-3, 5))
            symlog_if_wide(ax.set_yscale, rows[column])
    legend(canvas, table["run"].unique(), styles)
    return canvas


FIGURE = Figure(
    name="training_dynamics",
    title="Training dynamics",
    section="Learning",
    tables=("training_metrics",),
    caption=(
        "Learning rate, norm of the whole gradient before clipping, tokens a second and memory at each "
        "logged step. Speed and memory belong to the machine named below; on a machine that runs other work "
        "they say little. The gradient norm runs over the parameters that train, fewer of them under LoRA: "
        "it is not comparable between methods."
    ),
    draw=_draw,
)
