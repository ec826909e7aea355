"""What gradients were: as training saw them, and of every task at the stored checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.mathematics.statistics.intervals import t_quantile
from rankdrift.analysis.report.grids import Grid, grid_of, number, with_error
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.observations import (
    gradient_statistics,
    last_checkpoints,
    rows_of,
    whole_gradients,
)


def on_gradients(study: Study) -> Iterator[str | Grid]:
    """Yield the course of each run's gradient and its largest and smallest layer."""
    gradients = study.table("gradient_analysis_results")
    if gradients is None:
        return
    whole = gradient_statistics(gradients, "global").sort_values("step")
    layers = gradient_statistics(gradients, "layer")
    yield grid_of(
        (_course(run, rows, layers[layers["run"] == run]) for run, rows in study.by_run(whole)),
        "Norm of the gradient before clipping while training: medians of the first and of the last third of "
        "the probed steps, and the layers with the largest and the smallest median over all of them",
    )
    if whole["method"].nunique() > 1:
        yield "LoRA's factors and whole weights are different spaces: their gradients' sizes do not compare."


def _course(run: str, whole: pd.DataFrame, layers: pd.DataFrame) -> dict[str, str]:
    third = max(len(whole) // 3, 1)
    cells = {
        "run": run,
        "probed steps": f"{len(whole)} ({whole['step'].min()} to {whole['step'].max()})",
        "at first": number(whole["l2_norm"].head(third).median()),
        "at last": number(whole["l2_norm"].tail(third).median()),
    }
    by_layer = layers.groupby("layer")["l2_norm"].median().dropna()
    if by_layer.empty:
        return cells
    return cells | {"largest layer": str(by_layer.idxmax()), "smallest layer": str(by_layer.idxmin())}


def on_task_gradients(study: Study) -> Iterator[str | Grid]:
    """Yield whether the tasks pull in one direction at each run's last checkpoint, and how noisy they are."""
    pairs = study.table("task_gradients")
    if pairs is not None:
        last = last_checkpoints(whole_gradients(pairs))
        last = last[last["task"] < last["other_task"]]
        if len(last):
            yield grid_of(
                (_alignment(row) for _, rows in study.by_run(last) for row in rows_of(rows)),
                "Cosine of two tasks' gradients, corrected for their noise",
            )
    noise = study.table("gradient_noise")
    if noise is not None:
        yield from _noise(study, last_checkpoints(whole_gradients(noise)))


def _noise(study: Study, noise: pd.DataFrame) -> Iterator[str | Grid]:
    """Yield the noise scales whose gradient is told from 0, and how many are not."""
    sure = noise["gradient_square_stderr"] * noise["shards"].map(t_quantile)
    known = noise[noise["gradient_square"] > sure]
    if len(known):
        yield grid_of(
            ({"run": run} | _noise_scales(rows) for run, rows in study.by_run(known)),
            "Noise scale of each task's gradient, in rows ± standard error: a batch of that size has as much "
            "noise as gradient",
        )
    unknown = len(noise) - len(known)
    if unknown:
        rows = " to ".join(dict.fromkeys(map(str, (noise["n"].min(), noise["n"].max()))))
        yield (
            f"Of {len(noise)} gradients (a run and task each, {rows} rows), {unknown} are not told from 0 by "
            "their squared norm at 95 % (Student's t over shards): their noise scale is not known, and not "
            "given."
        )


def _alignment(row: Any) -> dict[str, str]:
    known = (
        row.cosine_corrected == row.cosine_corrected
        and row.cosine_corrected_stderr == row.cosine_corrected_stderr
    )
    cells = {
        "run": row.run,
        "tasks": f"{row.task} with {row.other_task}",
        "cosine ± standard error": with_error(row.cosine_corrected, row.cosine_corrected_stderr),
        "as observed": number(row.cosine),
    }
    if not known:
        return cells | {"verdict": row.reason}
    clear = abs(row.cosine_corrected) > t_quantile(row.shards) * row.cosine_corrected_stderr
    verdict = ("a conflict" if row.cosine_corrected < 0 else "aligned") if clear else "no direction shown"
    return cells | {"verdict": verdict}


def _noise_scales(rows: pd.DataFrame) -> dict[str, str]:
    return {row.task: with_error(row.noise_scale, row.noise_scale_stderr) for row in rows_of(rows)}
