"""What was learnt and forgotten: changes of scores against the base and between runs.

Intervals and tests over items are those of ``item_contrasts``; values alone are of ``performance_metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.report.grids import (
    ALPHA,
    MISSING,
    Grid,
    change,
    grid_of,
    interval,
    measured,
    number,
    signed,
    with_error,
)
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.observations import (
    BASE,
    GENERAL_TEXT,
    arm_of,
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    rows_of,
    scores_of,
)

CONTRASTS = "item_contrasts"
EXACT = "McNemar's p"
SHOWN = "shown"


def on_learning(study: Study) -> Iterator[str | Grid]:
    """Yield what each run gained on each task over the base, and full fine-tuning over the other runs."""
    performance = study.table("performance_metrics")
    if performance is None:
        return
    for task, metric in leading_metrics(performance):
        last = last_checkpoints(scores_of(performance, task, metric))
        yield from _against_base(study, last.assign(score=last["value"]), task, metric)
        yield from _between_runs(study, last, task, metric)


def on_forgetting(study: Study) -> Iterator[str | Grid]:
    """Yield how much worse each run predicts general text than the base, and how far it moved."""
    performance = study.table("performance_metrics")
    if performance is None:
        return
    last = last_checkpoints(forgetting(performance))
    yield from _against_base(study, last.assign(score=last["nll"]), GENERAL_TEXT, "nll")
    yield from _between_runs(study, last, GENERAL_TEXT, "nll")


def _against_base(study: Study, last: pd.DataFrame, task: str, metric: str) -> Iterator[str | Grid]:
    """Yield a row a run, `score` and its change from the base, and how many changed for sure."""
    base = base_score(study.tables["performance_metrics"], task, metric)
    changes = [
        _change(study, row, task, metric, base) for _, rows in study.by_run(last) for row in rows_of(rows)
    ]
    if not changes:
        return
    origin = f"the base model has {with_error(*base)}" if base else "the base model was not scored"
    yield grid_of(changes, f"{study.measured(task, metric)} at the last checkpoint; {origin}")
    verdicts = [row[SHOWN] for row in changes if row.get(SHOWN, MISSING) != MISSING]
    if verdicts:
        yield (
            f"{verdicts.count('yes')} of {len(verdicts)} runs are shown to differ from the base over these "
            f"items: {_rule(changes)}. Of runs that do not differ about one in twenty would seem to, "
            "somewhat more with few windows or items, and many at once: all runs share the base and the "
            "items."
        )


def _change(
    study: Study, row: Any, task: str, metric: str, base: tuple[float, float] | None
) -> dict[str, str]:
    """Return a run's cells: over the items of both models, or of the two scores where none pair."""
    cells = {"run": row.run, "step": str(row.step), measured(task, metric): number(row.score, 4)}
    if base is not None:
        cells["change from the base"] = signed(row.score - base[0])
    cells |= _stated(_contrast_with_base(study, row, task, metric))
    if hasattr(row, "kl_from_base"):
        cells["KL from the base (nats a token) ± standard error"] = with_error(
            row.kl_from_base, row.kl_stderr
        )
    return cells


def _contrast_with_base(study: Study, row: Any, task: str, metric: str) -> Any:
    """Return the row of ``item_contrasts`` of a checkpoint and the base, or why there is none."""
    contrasts = study.table(CONTRASTS)
    if contrasts is None:
        return f"the study has no table {CONTRASTS}"
    found = scores_of(contrasts, task, metric)
    found = found[(found["run"] == row.run) & (found["step"] == row.step) & (found["other_run"] == BASE)]
    return f"not in the table {CONTRASTS}" if found.empty else next(rows_of(found))


def _stated(contrast: Any) -> dict[str, str]:
    """Return the cells of a contrast; the verdict is that of its interval."""
    if isinstance(contrast, str):
        return {SHOWN: MISSING, "no interval": contrast}
    ends = interval(contrast.low, contrast.high)
    cells = {"95 % BCa interval over items": ends or MISSING}
    if not ends:
        cells["no interval"] = contrast.reason
    if not np.isnan(contrast.mcnemar_p):
        cells[EXACT] = number(contrast.mcnemar_p, 2)
        cells["items gained / lost"] = f"{contrast.gained:.0f} / {contrast.lost:.0f}"
    if ends or EXACT in cells:
        cells[SHOWN] = "yes" if _is_shown(contrast) else "no"
    return cells | _sample(contrast)


def _is_shown(contrast: Any) -> bool:
    """Return whether a difference is shown: by the exact test of right or wrong answers, else the interval.

    The ends of an interval over a hundred right or wrong answers lie on few possible values, 0 among them.
    """
    if not np.isnan(contrast.mcnemar_p):
        return bool(contrast.mcnemar_p < ALPHA)
    return bool(contrast.low * contrast.high > 0)


def _rule(changes: list[dict[str, str]]) -> str:
    """Say what counts as shown."""
    exact = any(EXACT in row for row in changes)
    return f"McNemar's exact p below {ALPHA:g}" if exact else "the interval excludes 0"


def _sample(contrast: Any) -> dict[str, str]:
    """Return what the interval is over: items or windows, and how many documents they are from."""
    if np.isnan(contrast.difference):
        return {}
    documents = MISSING if contrast.resampled == contrast.items else f"{contrast.resampled:.0f}"
    kind = "windows" if contrast.task == GENERAL_TEXT else "items"
    return {kind: str(contrast.items), "of documents": documents}


def _between_runs(study: Study, last: pd.DataFrame, task: str, metric: str) -> Iterator[str | Grid]:
    """Yield full fine-tuning against every other run of the same seed, over the same items."""
    found = _contrasts_of_methods(study, last, task, metric)
    if found.empty:
        return
    cells: dict[str, dict[str, str]] = {}
    for row in rows_of(found):
        heading = f"{arm_of(row.run, row.seed)} minus this run"
        cells.setdefault(row.other_run, {})[heading] = _difference(row)
    exact = bool(found["mcnemar_p"].notna().any())
    rule = f"McNemar's exact p is below {ALPHA:g}" if exact else "that excludes 0"
    in_order = [run for run, _ in study.by_run(last) if run in cells]
    yield grid_of(
        ({"run": run, **cells[run]} for run in in_order),
        f"Full fine-tuning against the other runs of its seed, {study.measured(task, metric)}: difference "
        f"and 95 % BCa interval over items; * where {rule}",
    )


def _contrasts_of_methods(study: Study, last: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Return the contrasts of two last checkpoints with exactly one of full fine-tuning, which is `run`."""
    contrasts = study.table(CONTRASTS)
    if contrasts is None:
        return pd.DataFrame()
    runs = last[["run", "step", "method"]]
    found = scores_of(contrasts, task, metric).merge(runs, on=["run", "step"])
    found = found.merge(runs.add_prefix("other_"), on=["other_run", "other_step"])
    full, other = found["method"] == "full", found["other_method"] == "full"
    return pd.concat([found[full & ~other], _turned(found[other & ~full])])


def _turned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return contrasts the other way round."""
    return rows.assign(
        run=rows["other_run"],
        other_run=rows["run"],
        difference=-rows["difference"],
        low=-rows["high"],
        high=-rows["low"],
    )


def _difference(row: Any) -> str:
    text = change(row.difference, row.low, row.high, row.reason)
    return text + (" *" if _is_shown(row) else "")
