"""Scores of a run's edited models: what removing intruders does beside controls, and the line from the base.

An intervention speaks of intruders only where its arm differs from the controls of equal strength
(:mod:`rankdrift.analysis.mathematics.spectral.interventions`). Every edited model is compared with the step
itself, item by item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift import files
from rankdrift.analysis.comparisons.item_contrasts import bootstrap, same_items
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import Finding, Listing, Sentence
from rankdrift.analysis.formats import change, percent, score_name
from rankdrift.analysis.sources.observations import (
    EDIT_SETTINGS,
    GENERAL_TEXT,
    edit_outcomes,
    last_checkpoints,
    leading_metrics,
    line_scores,
    of_blocks,
    rows_of,
    scores_of,
    update_sizes,
)
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout, step_name, steps_in

TABLE = "variant_scores"
EDIT = {
    "kind": "intervention or interpolation",
    "arm": "what is edited: intruders, or neighbours, random, shrunk, rescaled (controls); interpolation",
    "at": "intervention: what singular values are multiplied with; interpolation: t of W0 + t (W - W0)",
    "top_k": "leading vectors among which intruders are looked for; NaN of an interpolation",
    "threshold": "|cosine| below which a vector is an intruder; NaN of an interpolation",
    "first_only": "1 where only the largest intruder of a matrix is edited, else 0; NaN of an interpolation",
    "matrices": "matrices that are edited",
    "vectors": "singular vectors edited one by one, over all matrices",
    "relative_edit_norm": "||W' - W||_F / ||W0||_F over the matrices looked at",
    "relative_update_norm": "||W' - W0||_F / ||W0||_F over them",
}
COLUMNS = {
    "variant": "folder of the edited model below the run's variants/step-NNNNNN",
    **EDIT,
    "task": "task, or general_text",
    "metric": "as in performance_metrics",
    "role": "trained, retention or text, as in performance_metrics",
    "value": "the metric of the edited model",
    "stderr": "its standard error over items; NaN where the metric is not a mean over items",
    "n": "items scored",
    "trained_value": "the metric of the step itself",
    "difference": "value - trained_value",
    "difference_low": "lower end of its 95 % BCa interval, items drawn in pairs",
    "difference_high": "upper end",
    "higher_is_better": "direction of the metric",
    "reason": "why the interval is NaN; else empty",
}


def compute(subject: Subject, params: Params) -> Tables:
    """Return the table with a ``step`` column; no rows for a run of which nothing was edited."""
    if subject.run_dir is None:
        return {}
    run = RunLayout(subject.run_dir)
    rows = [
        row
        for step in steps_in(run.variants)
        for folder in sorted((run.variants / step_name(step)).iterdir())
        for row in _rows(run, step, RunLayout(folder))
    ]
    if not rows:
        return {}
    table = pd.DataFrame(rows, columns=["step", *COLUMNS])
    return {TABLE: table.astype(dict.fromkeys(("top_k", "threshold", "first_only"), "float64"))}


def _rows(run: RunLayout, step: int, variant: RunLayout) -> Iterator[dict[str, Any]]:
    """Yield a row a metric of one edited model; none where it or the step is not scored yet."""
    if not (variant.edit.exists() and variant.score(step).exists() and run.score(step).exists()):
        return
    edit = files.read_json(variant.edit)
    place = {"step": step, "variant": variant.root.name, **{name: edit[name] for name in EDIT}}
    trained = files.read_json(run.score(step))["tasks"]
    for task, result in files.read_json(variant.score(step))["tasks"].items():
        items = [_items(layout.score_items(step, task)) for layout in (variant, run)]
        for metric, measured in result["metrics"].items():
            before = trained.get(task, {}).get("metrics", {}).get(metric)
            yield {
                **place,
                "task": task,
                "metric": metric,
                "role": result["role"],
                "value": _number(measured["value"]),
                "stderr": _number(measured["stderr"]),
                "n": result["n"],
                "trained_value": _number(before["value"]) if before else np.nan,
                "higher_is_better": measured["higher_is_better"],
                **_difference(items, metric, measured, before),
            }


def _items(path: Path) -> pd.DataFrame | None:
    return files.read_table(path).set_index("index").sort_index() if path.exists() else None


def _difference(
    items: list[pd.DataFrame | None],
    metric: str,
    measured: Mapping[str, Any],
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    one, other = items
    value = _number(measured["value"]) - _number(before["value"] if before else None)
    nothing = {"difference": value, "difference_low": np.nan, "difference_high": np.nan}
    if one is None or other is None or metric not in one.columns or metric not in other.columns:
        return nothing | {"reason": "the metric is not a mean over items"}
    if not same_items(one, other):
        return nothing | {"reason": "step and edited model were scored on different items: score them again"}
    found = bootstrap(one, other, metric)
    low, high = (np.nan if end is None else end for end in (found.low, found.high))
    return {
        "difference": found.value,
        "difference_low": low,
        "difference_high": high,
        "reason": found.reason,
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _edited(variants: pd.DataFrame, spectra: pd.DataFrame | None) -> pd.DataFrame:
    """Return the edits' outcomes, with the size of the run's update before any, in the blocks' matrices."""
    rows = edit_outcomes(variants)
    sizes = None if spectra is None else update_sizes(of_blocks(last_checkpoints(spectra))).set_index("run")
    before = rows["run"].map({} if sizes is None else sizes["relative_update_norm"])
    names = map(score_name, rows["task"], rows["metric"], rows["higher_is_better"])
    return rows.assign(
        before=["" if size != size else f", the update's {percent(size)} before" for size in before],
        which=np.where(rows["first_only"], "the largest", "all"),
        what=pd.Series(names, rows.index, dtype=object).where(rows["task"].notna()),
    )


def _against_controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the verdict on the edit of intruders: which controls it beats, beyond both intervals."""
    edited, controls = (found for found in (rows[rows["arm"] == EDITED], rows[rows["arm"] != EDITED]))
    if edited.empty or controls.empty:
        return rows.head(0)
    highest = edited["nll_high"].iloc[0]
    left = controls[~(controls["nll_low"] > highest)]["arm"].unique()
    if highest != highest:
        said = "Whether editing intruders lowers the NLL is not known: its change has no interval."
    elif highest >= 0:
        said = "That editing intruders lowers the NLL is not shown: its interval does not lie below 0."
    elif not len(left):
        said = (
            "Editing intruders lowers this model's NLL more than every control does, beyond both intervals."
        )
    else:
        said = (
            f"Editing intruders does not lower the NLL more than {', '.join(left)} beyond both intervals: "
            "that intruders carry forgetting is not shown."
        )
    return edited.assign(said=said)


def _best_points(variants: pd.DataFrame) -> pd.DataFrame:
    """Return the best point of each run's line: for every task's leading metric, and for general text."""
    line, found = line_scores(variants), []
    for task, metric in [*leading_metrics(line), (GENERAL_TEXT, "nll")]:
        rows = scores_of(line, task, metric)
        higher = task != GENERAL_TEXT and bool(rows["higher_is_better"].any())
        name = f"best {score_name(task, metric, higher)}"
        name = "lowest NLL of general text" if task == GENERAL_TEXT else name
        best = rows.sort_values("value", ascending=not higher, kind="stable").drop_duplicates("run")
        found.append(best.assign(name=name, versus=[_versus(row) for row in rows_of(best)]))
    return pd.concat(found)


def _versus(best: Any) -> str:
    """Return how a point differs from the tuned model's own, t = 1."""
    if best.at == 1:
        return ", the tuned model's own"
    return f": {change(best.value - best.trained_value, best.difference_low, best.difference_high)}"


EDITED = "intruders"
EDITS = Listing(
    {
        "edited": "{arm}",
        "size of the edit": "{relative_edit_norm:percent}",
        "size of the update left": "{relative_update_norm:percent}",
        "change of the NLL (nats a token)": "{nll,nll_low,nll_high:change}",
        "change of {what}": "{score,score_low,score_high:change}",
    },
    "{run}, singular values times {at:general} ({which} of the intruders among {top_k:general} leading "
    "vectors at the threshold {threshold:general}). Sizes are shares of the base's norm{before}; changes of "
    "scores have 95 % intervals over items",
    by=("variant",),
)
CONTROLS = Sentence("{said}", _against_controls)
BEST = Listing(
    {"run": "{run}", "{name}": "{value:number} at t = {at:general}{versus}"},
    "On the line W0 + t (W - W0): the best point measured, and its difference from the tuned model with a "
    "95 % interval over items",
)
CHOSEN = Sentence("These are the best of the t measured: the intervals do not allow for the choice.")
FINDINGS = (
    Finding(
        "Interventions on intruders",
        (TABLE,),
        _edited,
        (EDITS, CONTROLS),
        per=("run", *EDIT_SETTINGS),
        beside=("svd_analysis_results",),
    ),
    Finding("Between base and tuned weights", (TABLE,), _best_points, (BEST, CHOSEN)),
)
ANALYSIS = Analysis(
    name="variants",
    columns={TABLE: COLUMNS},
    per="run",
    compute=compute,
    version=2,
    findings=FINDINGS,
)
