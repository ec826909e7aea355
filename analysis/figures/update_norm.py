"""Size of the update relative to the weight, by step and module."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import (
    GREY,
    draw_runs,
    legend,
    log_if_positive,
    panels,
    reference,
    run_styles,
    whole_numbers,
)
from rankdrift.analysis.sources.observations import tuned_rows, update_sizes


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    spectra = tuned_rows(tables["svd_analysis_results"])
    if spectra.empty:
        raise NothingToDraw("the table svd_analysis_results has no trained checkpoint")
    styles = run_styles(tables)
    sizes = update_sizes(spectra, by=("module",))
    floor = (spectra["relative_update_norm"] / spectra["bf16_floor_ratio"]).median()
    modules = list(spectra["module"].unique())
    canvas, axes = panels(len(modules), height=2.4, share_y=True)
    for ax, module in zip(axes, modules, strict=True):
        draw_runs(ax, sizes[sizes["module"] == module], "step", "relative_update_norm", styles)
        ax.axhline(floor, color=GREY, linestyle="--", linewidth=1.2)
        ax.set_title(module)
        whole_numbers(ax, "optimizer step")
    relative = sizes["relative_update_norm"]
    log_if_positive(axes[0], relative[relative > 0])
    for ax in axes[:: len(axes) if len(axes) <= 3 else 4]:
        ax.set_ylabel(r"$\|\Delta W\| / \|W_0\|$")
    legend(canvas, spectra["run"].unique(), styles, reference("bf16 rounding of W0"))
    return canvas


FIGURE = Figure(
    name="update_norm",
    title="Size of the update",
    section="Weights",
    tables=("svd_analysis_results",),
    caption=(
        "Frobenius norm of the update over that of the base weight, taken over all layers of a module; no "
        "line where a run leaves the module as it was. "
        "Dashed: the size of the rounding that storing the weights in bf16 would add; an update below it "
        "would be mostly rounding in a bf16 checkpoint, which is why updates here come from fp32 weights or "
        "from the adapters."
    ),
    draw=_draw,
)
