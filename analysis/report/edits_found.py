"""What edited weights do: interventions on intruders, and lines to the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.observations import (
    EDIT_SETTINGS,
    GENERAL_TEXT,
    edit_outcomes,
    leading_metrics,
    line_scores,
    rows_of,
    scores_of,
)
from rankdrift.analysis.report.grids import Grid, change, grid_of, number, percent
from rankdrift.analysis.report.study import Study

EDITED = "intruders"
"""The arm that is compared with the others, its controls."""


def on_interventions(study: Study) -> Iterator[str | Grid]:
    """Yield what editing a run's intruders does, beside each control, and whether it does more than these."""
    variants = study.table("variant_scores")
    if variants is None:
        return
    outcomes = edit_outcomes(variants)
    for _, rows in outcomes.groupby(["run", "task", *EDIT_SETTINGS], sort=False):
        yield grid_of(map(_edit, rows_of(rows)), _what(next(rows_of(rows))))
        yield from _against_controls(rows)


def _what(row: Any) -> str:
    """Return which run is edited how."""
    which = "the largest" if row.first_only else "all"
    return (
        f"{row.run}, singular values times {row.at:g} ({which} of the intruders among {row.top_k:g} leading "
        f"vectors at the threshold {row.threshold:g})"
    )


def _edit(row: Any) -> dict[str, str]:
    return {
        "edited": row.arm,
        "size of the edit (of the base's norm)": percent(row.relative_edit_norm),
        "change of the NLL (nats a token)": change(row.nll, row.nll_low, row.nll_high),
        f"change of {row.metric} on {row.task}": change(row.score, row.score_low, row.score_high),
    }


def _against_controls(rows: pd.DataFrame) -> Iterator[str]:
    """Yield which controls the edit of intruders beats on the NLL, beyond both intervals; none without."""
    edited, controls = rows[rows["arm"] == EDITED], rows[rows["arm"] != EDITED]
    if edited.empty or controls.empty:
        return
    highest = edited["nll_high"].iloc[0]
    if not highest < 0:
        yield "That editing intruders lowers the NLL is not shown: its interval does not lie below 0."
        return
    left = controls[~(controls["nll_low"] > highest)]["arm"]
    if left.empty:
        yield "Editing intruders lowers the NLL more than every control does, beyond both intervals."
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
        cells[f"best {metric} on {task}"] = _at_best(scores, bool(scores["higher_is_better"].iloc[0]))
    text = scores_of(rows, GENERAL_TEXT, "nll")
    return cells | ({"lowest NLL of general text": _at_best(text, higher=False)} if len(text) else {})


def _at_best(rows: pd.DataFrame, higher: bool) -> str:
    """Return the best value and its t, with how it differs from the tuned model's."""
    best = next(rows_of(rows.sort_values("value", ascending=not higher)))
    text = f"{number(best.value)} at t = {best.at:g}"
    if best.at == 1:
        return f"{text}, the tuned model's own"
    return f"{text}: {change(best.value - best.trained_value, best.difference_low, best.difference_high)}"
