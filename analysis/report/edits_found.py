"""What edited weights do: interventions on intruders, and lines to the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.report.grids import Grid, change, grid_of, measured, number, percent
from rankdrift.analysis.report.study import Study
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

EDITED = "intruders"
"""The arm that is compared with the others, its controls."""


def on_interventions(study: Study) -> Iterator[str | Grid]:
    """Yield what editing a run's intruders does, beside each control, and whether it does more than these."""
    variants = study.table("variant_scores")
    if variants is None:
        return
    outcomes = edit_outcomes(variants)
    for run, of_run in study.by_run(outcomes):
        for _, rows in of_run.groupby(EDIT_SETTINGS, sort=False):
            yield grid_of(_edits(rows), _what(next(rows_of(rows)), _size_before(study, run)))
            yield from _against_controls(rows.drop_duplicates("variant"))


def _what(row: Any, before: str) -> str:
    """Return which run is edited how."""
    which = "the largest" if row.first_only else "all"
    return (
        f"{row.run}, singular values times {row.at:g} ({which} of the intruders among {row.top_k:g} leading "
        f"vectors at the threshold {row.threshold:g}). Sizes are shares of the base's norm{before}; "
        "changes of scores have 95 % intervals over items"
    )


def _size_before(study: Study, run: str) -> str:
    """Return how large the update is before any edit, in the matrices of the blocks."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return ""
    sizes = update_sizes(of_blocks(last_checkpoints(spectra)))
    found = sizes[sizes["run"] == run]["relative_update_norm"]
    return "" if found.empty else f", the update's {percent(found.iloc[0])} before"


def _edits(outcomes: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a row an edited model; of several tasks, each has a column."""
    for _, rows in outcomes.groupby("variant", sort=False):
        row = next(rows_of(rows))
        yield {
            "edited": row.arm,
            "size of the edit": percent(row.relative_edit_norm),
            "size of the update left": percent(row.relative_update_norm),
            "change of the NLL (nats a token)": change(row.nll, row.nll_low, row.nll_high),
        } | {
            f"change of {measured(task.task, task.metric, task.higher_is_better)}": change(
                task.score, task.score_low, task.score_high
            )
            for task in rows_of(rows.dropna(subset=["score"]))
        }


def _against_controls(rows: pd.DataFrame) -> Iterator[str]:
    """Yield which controls the edit of intruders beats on the NLL, beyond both intervals; none without."""
    edited, controls = rows[rows["arm"] == EDITED], rows[rows["arm"] != EDITED]
    if edited.empty or controls.empty:
        return
    highest = edited["nll_high"].iloc[0]
    if highest != highest:
        yield "Whether editing intruders lowers the NLL is not known: its change has no interval."
        return
    if highest >= 0:
        yield "That editing intruders lowers the NLL is not shown: its interval does not lie below 0."
        return
    left = controls[~(controls["nll_low"] > highest)]["arm"]
    if left.empty:
        yield "Editing intruders lowers this model's NLL more than every control does, beyond both intervals."
    else:
        yield (
            f"Editing intruders does not lower the NLL more than {', '.join(left)} beyond both intervals: "
            "that intruders carry forgetting is not shown."
        )


def on_interpolation(study: Study) -> Iterator[str | Grid]:
    """Yield where on the line from base to tuned weights each run scores best and forgets least."""
    variants = study.table("variant_scores")
    if variants is None:
        return
    line = line_scores(variants)
    if line.empty:
        return
    yield grid_of(
        ({"run": run} | _best_points(rows) for run, rows in study.by_run(line)),
        "On the line W0 + t (W - W0): the best point measured, and its difference from the tuned model with "
        "a 95 % interval over items",
    )
    yield "These are the best of the t measured: the intervals do not allow for the choice."


def _best_points(rows: pd.DataFrame) -> dict[str, str]:
    cells = {}
    for task, metric in leading_metrics(rows):
        scores = scores_of(rows, task, metric)
        higher = bool(scores["higher_is_better"].iloc[0])
        cells[f"best {measured(task, metric, higher)}"] = _at_best(scores, higher)
    text = scores_of(rows, GENERAL_TEXT, "nll")
    return cells | ({"lowest NLL of general text": _at_best(text, higher=False)} if len(text) else {})


def _at_best(rows: pd.DataFrame, higher: bool) -> str:
    """Return the best value and its t, with how it differs from the tuned model's."""
    best = next(rows_of(rows.sort_values("value", ascending=not higher)))
    text = f"{number(best.value)} at t = {best.at:g}"
    if best.at == 1:
        return f"{text}, the tuned model's own"
    return f"{text}: {change(best.value - best.trained_value, best.difference_low, best.difference_high)}"
