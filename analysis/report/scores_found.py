"""Sentences on learning and forgetting: changes of scores against the base and between runs.

Intervals and tests over items are those of ``item_contrasts``; values alone are of ``performance_metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.observations import (
    BASE,
    GENERAL_TEXT,
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    rows_of,
    scores_of,
)
from rankdrift.analysis.report.grids import interval, measured, number, signed
from rankdrift.analysis.report.study import Study

CONTRASTS = "item_contrasts"


def on_learning(study: Study) -> Iterator[str]:
    """Yield what each run gained on each task over the base, and full fine-tuning over the other runs."""
    performance = study.table("performance_metrics")
    if performance is None:
        return
    for task, metric in leading_metrics(performance):
        last = last_checkpoints(scores_of(performance, task, metric)).sort_values("run")
        base = base_score(performance, task, metric)
        for row in rows_of(last):
            yield _gain(study, row, base)
        yield from _between_runs(study, last, task, metric)


def _gain(study: Study, row: Any, base: tuple[float, float] | None) -> str:
    text = f"{row.run}: {measured(row.task, row.metric)} is {number(row.value)} at step {row.step}"
    if base is None:
        return f"{text}; the base model was not scored."
    change = _from_base(study, row, row.task, row.metric, row.value - base[0])
    return f"{text}, {number(base[0])} for the base model: {change}."


def on_forgetting(study: Study) -> Iterator[str]:
    """Yield how much worse each run predicts general text than the base, and how far it moved."""
    performance = study.table("performance_metrics")
    if performance is None:
        return
    last = last_checkpoints(forgetting(performance))
    for row in rows_of(last):
        parts = list(_costs(study, row))
        if parts:
            yield f"{row.run}: on general text, {'; '.join(parts)}."
    yield from _between_runs(study, last, GENERAL_TEXT, "nll")


def _costs(study: Study, row: Any) -> Iterator[str]:
    if not np.isnan(row.nll_increase):
        change = _from_base(study, row, GENERAL_TEXT, "nll", row.nll_increase)
        yield f"NLL per token {number(row.nll)} nats, {change}"
    if not np.isnan(row.kl_from_base):
        error = f"standard error {number(row.kl_stderr, 2)}"
        yield f"KL from the base {number(row.kl_from_base)} nats a token, {error}"


def _from_base(study: Study, row: Any, task: str, metric: str, change: float) -> str:
    """State a run's change from the base: over the items of both, or of the two scores where none pair."""
    contrasts = study.table(CONTRASTS)
    if contrasts is None:
        return _without_interval(change, f"the study has no table {CONTRASTS}")
    found = scores_of(contrasts, task, metric)
    found = found[(found["run"] == row.run) & (found["step"] == row.step) & (found["other_run"] == BASE)]
    if found.empty:
        return _without_interval(change, f"not in the table {CONTRASTS}")
    contrast = next(rows_of(found))
    if np.isnan(contrast.difference):
        return _without_interval(change, contrast.reason)
    return f"a change of {_stated(contrast)}"


def _without_interval(change: float, reason: str) -> str:
    return f"a change of {signed(change)}, without an interval over items ({reason})"


def _between_runs(study: Study, last: pd.DataFrame, task: str, metric: str) -> Iterator[str]:
    """Compare full fine-tuning with every other run of the same seed, over the same items."""
    contrasts = study.table(CONTRASTS)
    if contrasts is None:
        return
    runs = last[["run", "step", "method"]]
    found = scores_of(contrasts, task, metric).merge(runs, on=["run", "step"])
    found = found.merge(runs.add_prefix("other_"), on=["other_run", "other_step"])
    for row in rows_of(found[(found["method"] == "full") != (found["other_method"] == "full")]):
        text = f"{row.run} minus {row.other_run}, {measured(task, metric)}"
        known = not np.isnan(row.difference)
        yield f"{text}: {f'a difference of {_stated(row)}' if known else f'no comparison; {row.reason}'}."


def _stated(contrast: Any) -> str:
    """State a row of ``item_contrasts`` that has a difference; the verdict is that of its interval."""
    ends = interval(contrast.low, contrast.high)
    text = f"{signed(contrast.difference)} over {_sample(contrast)}, "
    text += f"95 % BCa interval {ends}" if ends else f"without an interval ({contrast.reason})"
    if not np.isnan(contrast.mcnemar_p):
        counts = f"{contrast.gained:.0f} items gained, {contrast.lost:.0f} lost"
        text += f", McNemar's p = {number(contrast.mcnemar_p, 2)} ({counts})"
    if not ends:
        return text
    verdict = "more" if contrast.low * contrast.high > 0 else "no more"
    return f"{text}, {verdict} than the choice of items may explain"


def _sample(contrast: Any) -> str:
    """Return what the interval is over: items or windows, and how many documents they are from."""
    items = f"{contrast.items} {'windows' if contrast.task == GENERAL_TEXT else 'items'}"
    whole = contrast.resampled == contrast.items
    return items if whole else f"{items} of {contrast.resampled:.0f} documents"
