"""Sentences on what happened inside the model: update, rank, intruders, drift, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.observations import (
    gradient_statistics,
    intruder_totals,
    last_checkpoints,
    rank_shares,
    rows_of,
    update_sizes,
)
from rankdrift.analysis.report.grids import number
from rankdrift.analysis.report.study import Study


def on_update_size(study: Study) -> Iterator[str]:
    """Yield the size of each run's update relative to the base, and how much of it bf16 would lose."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    last = last_checkpoints(spectra)
    sizes = update_sizes(last).set_index("run")["relative_update_norm"]
    for run, rows in last.groupby("run"):
        largest = _extreme(rows, "relative_update_norm")
        rounded = int((rows["bf16_floor_ratio"] < 1).sum())
        yield (
            f"{run}: the update is {_percent(sizes[run])} of the base weights' norm over all {len(rows)} "
            f"matrices, largest in {largest.module} of layer {largest.layer} "
            f"({_percent(largest.relative_update_norm)}); in {rounded or 'none'} of them it is smaller than "
            "the rounding of the weight to bf16."
        )


def _extreme(table: pd.DataFrame, column: str, largest: bool = True) -> Any:
    """Return the row with the largest (or smallest) value of a column, as a named tuple."""
    return next(rows_of(table.sort_values(column, ascending=not largest)))


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"


def on_rank(study: Study) -> Iterator[str]:
    """Yield the entropy rank of each run's update against its null."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    last = rank_shares(last_checkpoints(spectra))
    last = last[last["update_norm"] > 0]
    for run, rows in last.groupby("run"):
        middle = rows[["update_entropy_rank", "update_entropy_rank_null", "null_share"]].median()
        bound = int(rows["rank"].iloc[0])
        noise = f"Gaussian BA of rank {bound}" if bound else "noise of that shape"
        yield (
            f"{run}: its update has a median entropy rank of {number(middle['update_entropy_rank'])}, "
            f"{_percent(middle['null_share'])} of what {noise} gives "
            f"({number(middle['update_entropy_rank_null'])})"
            + (f"; it is bounded by r = {bound} by construction." if bound else ".")
        )
    if last["rank"].nunique() > 1:
        yield (
            "The gap in rank between LoRA and full fine-tuning is there by construction; what compares is "
            "the share of noise."
        )


def on_intruders(study: Study) -> Iterator[str]:
    """Yield counts, energy and leading singular value of each run's intruder dimensions."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    rows = intruder_totals(last_checkpoints(spectra))
    for row in rows_of(rows):
        yield (
            f"{row.run}: {row.intruders_left} left and {row.intruders_right} right intruders in "
            f"{row.matrices} matrices, holding on average {_percent(row.intruder_energy_left)} and "
            f"{_percent(row.intruder_energy_right)} of the leading energy; the update's largest singular "
            f"value is at most {number(row.sigma1_ratio)} times the base's."
        )
    if not rows.empty:
        yield "An intruder is spread over many base vectors; whether it causes forgetting is contested."


def on_drift(study: Study) -> Iterator[str]:
    """Yield where each run's representations drifted most."""
    drift = study.table("drift_metrics")
    if drift is None:
        return
    for run, rows in last_checkpoints(drift).dropna(subset=["cka"]).groupby("run"):
        lowest = _extreme(rows, "cka", largest=False)
        moved = _extreme(rows, "relative_l2")
        yield (
            f"{run}: CKA with the base is lowest after layer {lowest.layer}, {number(lowest.cka, 4)} "
            f"(standard error {number(lowest.cka_stderr, 2)} over {lowest.n} inputs), and "
            f"{number(rows['cka'].median(), 4)} in the median layer; hidden states move most after layer "
            f"{moved.layer}, by {_percent(moved.relative_l2)} of their norm."
        )


def on_gradients(study: Study) -> Iterator[str]:
    """Yield the course of each run's gradient and its largest and smallest layer."""
    gradients = study.table("gradient_analysis_results")
    if gradients is None:
        return
    whole = gradient_statistics(gradients, "global")
    layers = gradient_statistics(gradients, "layer")
    for run, rows in whole.sort_values("step").groupby("run"):
        tenth = max(len(rows) // 10, 1)
        first, last = rows["l2_norm"].head(tenth).median(), rows["l2_norm"].tail(tenth).median()
        sentence = (
            f"{run}: the gradient's norm goes from {number(first)} to {number(last)} (medians of the first "
            "and last tenth of the probed steps)"
        )
        by_layer = layers[layers["run"] == run].groupby("layer")["l2_norm"].median()
        if not by_layer.empty:
            sentence += (
                f"; its median is largest in layer {by_layer.idxmax()}, smallest in {by_layer.idxmin()}"
            )
        yield sentence + "."
    if whole["method"].nunique() > 1:
        yield "LoRA's factors and whole weights are different spaces: their gradients' sizes do not compare."
