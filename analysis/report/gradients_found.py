"""Sentences on gradients: as training saw them, and of every task at the stored checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rankdrift.analysis.observations import gradient_statistics, last_checkpoints, rows_of, whole_gradients
from rankdrift.analysis.report.grids import number
from rankdrift.analysis.report.study import Study


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


def on_task_gradients(study: Study) -> Iterator[str]:
    """Yield whether the tasks pull in one direction at each run's last checkpoint, and how noisy they are."""
    pairs = study.table("task_gradients")
    if pairs is not None:
        last = last_checkpoints(whole_gradients(pairs))
        for run, rows in last[last["task"] < last["other_task"]].groupby("run"):
            found = "; ".join(map(_alignment, rows_of(rows)))
            yield f"{run}: cosine of gradients ± standard error, {found}."
    noise = study.table("gradient_noise")
    if noise is not None:
        for run, rows in last_checkpoints(whole_gradients(noise)).groupby("run"):
            found = "; ".join(map(_noise, rows_of(rows)))
            yield f"{run}: noise scale of the gradient ± standard error, {found}."


def _alignment(row: Any) -> str:
    names = f"{row.task} with {row.other_task}"
    observed = f"{number(row.cosine)} as observed"
    if row.cosine_corrected != row.cosine_corrected:
        return f"{names} {observed}; not corrected for noise ({row.reason})"
    stderr = row.cosine_corrected_stderr
    if stderr != stderr:
        return f"{names} {number(row.cosine_corrected)} (no standard error: {row.reason}), {observed}"
    clear = abs(row.cosine_corrected) > 1.96 * stderr
    verdict = ("a conflict" if row.cosine_corrected < 0 else "aligned") if clear else "no direction shown"
    return f"{names} {number(row.cosine_corrected)} ± {number(stderr, 2)} ({observed}): {verdict}"


def _noise(row: Any) -> str:
    if row.noise_scale != row.noise_scale:
        return f"{row.task} undefined ({row.reason})"
    error = row.noise_scale_stderr
    return f"{row.task} {number(row.noise_scale)} rows" + ("" if error != error else f" ± {number(error, 2)}")
