"""Sentences on arms against each other over seeds, at equal learning, and on what goes with forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.observations import base_score, of_contrast, rows_of
from rankdrift.analysis.report.grids import interval, measured, number, signed
from rankdrift.analysis.report.study import Study

MATCHED = {
    "task_loss": ("validation loss", " nats a target token"),
    "relative_update_norm": ("relative size of the update", ""),
}
"""What is made equal -> its name and unit."""
PREDICTORS = {
    "kl_from_base": "KL from the base",
    "relative_update_norm": "relative size of the update",
    "sigma1_ratio": "largest ratio of leading singular values",
    "intruders": "intruders",
    "intruder_energy": "energy share of intruders",
    "drift": "1 - CKA, mean over layers",
}
ALPHA = 0.05


def on_seeds(study: Study) -> Iterator[str]:
    """Yield arms' means over seeds; each pair's differences, what was detectable, what a seed alone does."""
    means = study.table("seed_means")
    if means is not None:
        means = of_contrast(means)
        yield from (_mean(study, row) for row in rows_of(means[means["seeds"] > 1]))
    table = study.table("seed_contrasts")
    contrasts = None if table is None else of_contrast(table)
    if contrasts is None or contrasts.empty:
        return
    yield from (_contrast(row) for row in rows_of(contrasts[contrasts["seeds"] > 1]))
    single = contrasts[contrasts["seeds"] == 1]
    pairs = dict.fromkeys(f"{row.arm} and {row.other_arm}" for row in rows_of(single))
    if pairs:
        yield f"{'; '.join(pairs)}: one seed in common, hence no interval and nothing shown over seeds."


def _mean(study: Study, row: Any) -> str:
    """State an arm's mean change from the base, whose score is one for all seeds; without it, the mean."""
    performance = study.table("performance_metrics")
    base = None if performance is None else base_score(performance, row.task, row.metric)
    origin = base[0] if base else 0.0
    mean = signed(row.mean - origin) if base else number(row.mean)
    text = f"{row.arm}: mean {'change of ' if base else ''}{measured(row.task, row.metric)} {mean}"
    ends = interval(row.low - origin, row.high - origin)
    if not ends:
        return f"{text} over {row.seeds} seeds; {row.reason}."
    return f"{text}, 95 % t interval {ends} over {row.seeds} seeds."


def _contrast(row: Any) -> str:
    text = f"{row.arm} minus {row.other_arm}, {measured(row.task, row.metric)}: "
    text += f"mean difference {signed(row.difference)}"
    if not interval(row.low, row.high):
        return f"{text} over {row.seeds} seeds; {row.reason}."
    shown = row.low * row.high > 0 and not row.p_holm > ALPHA
    text += (
        f", 95 % paired t interval {interval(row.low, row.high)} over {row.seeds} seeds, "
        f"p = {number(row.p_value, 2)} (Holm over tasks: {number(row.p_holm, 2)}): "
        f"{'a difference' if shown else 'no difference'} is shown; the least that so many seeds of this "
        f"spread show with 80 % power is {number(row.minimum_detectable, 2)}"
    )
    if row.control_pairs == 0:
        return f"{text}; {row.reason}."
    return (
        f"{text}. Two seeds of one of these arms differ by {number(row.control_median, 2)} in the median, "
        f"at most {number(row.control_largest, 2)} ({row.control_pairs} pairs)."
    )


def on_matched(study: Study) -> Iterator[str]:
    """Yield which arm forgets more where both have learnt, or moved, equally far: at the furthest level."""
    table = study.table("matched_comparison")
    if table is None:
        return
    for (arm, other, matched), rows in table.groupby(["arm", "other_arm", "matched"], sort=False):
        name, unit = MATCHED[str(matched)]
        text = f"{arm} against {other} at equal {name}"
        known = rows.dropna(subset=["difference"])
        if known.empty:
            yield f"{text}: no comparison; {rows['reason'].iloc[0]}."
        else:
            yield f"{text}: {_at_furthest(known, unit)}."


def _at_furthest(rows: pd.DataFrame, unit: str) -> str:
    row = next(rows_of(rows.sort_values("position", ascending=False)))
    text = (
        f"at {number(row.level)}{unit}, the furthest all runs reach, the NLL increase is "
        f"{number(row.forgetting)} and {number(row.other_forgetting)} nats a token, difference "
        f"{signed(row.difference)}"
    )
    if not interval(row.low, row.high):
        return f"{text}; {row.reason}; nothing is shown"
    clear = row.low * row.high > 0
    less = row.other_arm if row.difference > 0 else row.arm
    verdict = f"{less} forgets less there" if clear else "no difference is shown"
    text += f", 95 % paired t interval {interval(row.low, row.high)} over {row.seeds} seeds: {verdict}"
    return (
        f"{text}; over all {len(rows)} levels the difference lies between "
        f"{signed(rows['difference'].min())} and {signed(rows['difference'].max())}"
    )


def on_predictors(study: Study) -> Iterator[str]:
    """Yield how forgetting goes with each quantity said to drive it, over checkpoints and over last ones."""
    table = study.table("forgetting_predictors")
    if table is None:
        return
    unsure = []
    for (scope, points), rows in table.dropna(subset=["spearman"]).groupby(["scope", "points"], sort=False):
        which = "all" if points == "all" else "the last"
        whose = f"{rows['runs'].max()} {'' if scope == 'pooled' else f'{scope} '}runs"
        over = f"over {which} {rows['checkpoints'].max()} checkpoints of {whose}"
        if rows["spearman_low"].isna().all():
            unsure.append(over)
            continue
        found = "; ".join(map(_predictor, rows_of(rows.sort_values("spearman", ascending=False))))
        yield f"Rank correlation with the NLL increase {over}: {found}."
    if unsure:
        yield f"Correlations {'; '.join(unsure)} have no interval: nothing is shown by these."
    if table["spearman_low"].notna().any():
        yield (
            "Along one run all of these grow with the step: a correlation over its checkpoints is no "
            "evidence, and over runs it is no cause."
        )


def _predictor(row: Any) -> str:
    ends = interval(row.spearman_low, row.spearman_high)
    return (
        f"{PREDICTORS.get(row.predictor, row.predictor)} {number(row.spearman, 2)} {ends or '(no interval)'}"
    )
