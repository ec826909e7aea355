"""Arms against each other over seeds, at equal learning, and what goes with forgetting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.observations import base_score, of_contrast, rows_of
from rankdrift.analysis.report.grids import (
    MISSING,
    Grid,
    change,
    grid_of,
    interval,
    measured,
    number,
    signed,
)
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
PAIRS_SHOWN = 12
"""Rows of a table of pairs of arms; further ones, none surer than these, are counted."""


def on_seeds(study: Study) -> Iterator[str | Grid]:
    """Yield arms' means over seeds; pairs' differences, what was detectable, what a seed alone does."""
    means = study.table("seed_means")
    if means is not None:
        means = of_contrast(means)
        means = means[means["seeds"] > 1]
        if len(means):
            yield _means(study, means)
    table = study.table("seed_contrasts")
    contrasts = None if table is None else of_contrast(table)
    if contrasts is None or contrasts.empty:
        return
    several = contrasts[contrasts["seeds"] > 1]
    for (task, metric), rows in several.groupby(["task", "metric"], sort=False):
        yield from _contrasts(rows, measured(str(task), str(metric)))
    single = contrasts[contrasts["seeds"] == 1].drop_duplicates(["arm", "other_arm"])
    if len(single):
        yield f"{len(single)} pairs of arms have one seed in common: no interval, nothing shown."


def _means(study: Study, means: pd.DataFrame) -> Grid:
    """Return a row an arm, of mean changes from the base, whose score is one for all seeds; else of means."""
    performance = study.table("performance_metrics")
    cells: dict[str, dict[str, str]] = {}
    for row in rows_of(means):
        base = None if performance is None else base_score(performance, row.task, row.metric)
        heading = f"{measured(row.task, row.metric)}, {'change' if base else 'value'}"
        cells.setdefault(row.arm, {"arm": row.arm, "seeds": str(row.seeds)})[heading] = _mean(row, base)
    return grid_of(cells.values(), "Means over seeds with 95 % t intervals")


def _mean(row: Any, base: tuple[float, float] | None) -> str:
    origin = base[0] if base else 0.0
    ends = interval(row.low - origin, row.high - origin) or f"({row.reason})"
    return f"{signed(row.mean - origin) if base else number(row.mean)} {ends}"


def _contrasts(rows: pd.DataFrame, what: str) -> Iterator[str | Grid]:
    """Yield the surest pairs of arms of one measure, and what is shown by all."""
    shown = (rows["low"] * rows["high"] > 0) & ~(rows["p_holm"] > ALPHA)
    order = rows.assign(shown=shown).sort_values(["shown", "p_value"], ascending=[False, True], kind="stable")
    part = f", the {PAIRS_SHOWN} surest of {len(rows)} pairs" if len(rows) > PAIRS_SHOWN else ""
    yield grid_of(
        map(_contrast, rows_of(order.head(PAIRS_SHOWN))),
        f"Differences of arms over seeds, {what}{part}: 95 % paired t intervals",
    )
    yield (
        f"{shown.sum() or 'None'} of {len(rows)} pairs of arms differ in {what}: an interval without 0, and "
        f"p at most {ALPHA:g} after Holm's correction over tasks (pairs are not corrected for)."
        f"{_detectable(rows['minimum_detectable'].dropna())}"
    )


def _detectable(least: pd.Series) -> str:
    """Say what so many seeds could have shown."""
    if least.empty:
        return ""
    ends = " to ".join(dict.fromkeys(number(value, 2) for value in (least.min(), least.max())))
    return f" With 80 % power so many seeds, of such a spread, show a difference of {ends}."


def _contrast(row: Any) -> dict[str, str]:
    cells = {
        "pair": f"{row.arm} minus {row.other_arm}",
        "seeds": str(row.seeds),
        "mean difference": change(row.difference, row.low, row.high, row.reason),
        "p": number(row.p_value, 2),
        "p after Holm": number(row.p_holm, 2),
        "shown": MISSING,
        "least detectable": number(row.minimum_detectable, 2),
    }
    if interval(row.low, row.high):
        cells["shown"] = "yes" if row.low * row.high > 0 and not row.p_holm > ALPHA else "no"
    if row.control_pairs:
        cells["two seeds of one arm: median, largest"] = (
            f"{number(row.control_median, 2)}, {number(row.control_largest, 2)} ({row.control_pairs} pairs)"
        )
    return cells


def on_matched(study: Study) -> Iterator[str | Grid]:
    """Yield which arm forgets more where both have learnt, or moved, equally far: at the furthest level."""
    table = study.table("matched_comparison")
    if table is None:
        return
    for matched, rows in table.groupby("matched", sort=False):
        name, unit = MATCHED[str(matched)]
        pairs = [found for _, found in rows.groupby(["arm", "other_arm"], sort=False)]
        known = [found for found in pairs if found["difference"].notna().any()]
        if known:
            yield grid_of(
                (_at_furthest(found.dropna(subset=["difference"]), unit) for found in known),
                f"NLL increase (nats a token) at equal {name}, where the furthest of all runs' is",
            )
        unknown = Counter(found["reason"].iloc[0] for found in pairs if found["difference"].isna().all())
        for reason, count in unknown.items():
            yield f"At equal {name} {count} of {len(pairs)} pairs of arms have no comparison: {reason}."


def _at_furthest(rows: pd.DataFrame, unit: str) -> dict[str, str]:
    row = next(rows_of(rows.sort_values("position", ascending=False)))
    clear = row.low * row.high > 0
    differences = rows["difference"]
    less = row.other_arm if row.difference > 0 else row.arm
    return {
        "pair": f"{row.arm} minus {row.other_arm}",
        "seeds": str(row.seeds),
        "at": f"{number(row.level)}{unit}",
        "first": number(row.forgetting),
        "second": number(row.other_forgetting),
        "difference, 95 % paired t interval": change(row.difference, row.low, row.high, row.reason),
        "shown": f"{less} forgets less" if clear else "nothing",
        "difference over all levels": " to ".join(map(signed, (differences.min(), differences.max()))),
    }


def on_predictors(study: Study) -> Iterator[str | Grid]:
    """Yield how forgetting goes with each quantity said to drive it, over checkpoints and over last ones."""
    table = study.table("forgetting_predictors")
    if table is None:
        return
    known = table.dropna(subset=["spearman"])
    if known.empty:
        return
    over = known.groupby(["scope", "points"], sort=False)
    rows = [{"over": _over(scope, points, found)} | _correlations(found) for (scope, points), found in over]
    yield grid_of(rows, "Rank correlation (Spearman) with the NLL increase, 95 % intervals over runs")
    yield (
        "Where no interval is given nothing is shown. Along one run all of these grow with the step: a "
        "correlation over its checkpoints is no evidence, and over runs it is no cause."
    )


def _over(scope: Any, points: Any, rows: pd.DataFrame) -> str:
    which = "all" if points == "all" else "the last"
    kind = "" if scope == "pooled" else f"{scope} "
    return f"{which} {rows['checkpoints'].max()} checkpoints of {rows['runs'].max()} {kind}runs"


def _correlations(rows: pd.DataFrame) -> dict[str, str]:
    return {
        PREDICTORS.get(row.predictor, row.predictor): (
            f"{number(row.spearman, 2)} {interval(row.spearman_low, row.spearman_high) or '(no interval)'}"
        )
        for row in rows_of(rows)
    }
