"""Arms against each other over seeds, at equal learning, and what goes with forgetting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.mathematics.statistics.seeds import holm
from rankdrift.analysis.report.grids import (
    ALPHA,
    MISSING,
    Grid,
    change,
    grid_of,
    interval,
    number,
    signed,
)
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.observations import base_score, of_contrast, rows_of

MATCHED = {
    "task_loss": ("validation loss", " nats a target token"),
    "relative_update_norm": ("relative size of the update", ""),
}
"""What is made equal -> its name and unit."""
PREDICTORS = {
    "kl_from_base": "KL from the base, same text",
    "relative_update_norm": "relative size of the update",
    "sigma1_ratio": "largest ratio of leading singular values",
    "intruders_left": "intruders, left (the published count)",
    "intruders_right": "intruders, right",
    "intruder_energy_left": "energy share of left intruders",
    "intruder_energy_right": "energy share of right intruders",
    "drift": "1 - CKA, mean over layers",
}
SEEDS_FOR_SPREAD = 3
"""Seeds below which a spread is no ground for what could be detected: of two it is one difference."""
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
    if table is None:
        return
    contrasts = of_contrast(table)
    several = contrasts[contrasts["seeds"] > 1]
    for (task, metric), rows in several.groupby(["task", "metric"], sort=False):
        yield from _contrasts(rows, study.measured(str(task), str(metric)))
    single = contrasts[contrasts["seeds"] == 1].drop_duplicates(["arm", "other_arm"])
    if len(single):
        yield f"Pairs of arms with one seed in common: {len(single)}; no interval, nothing shown."
    pairs, compared = math.comb(len(study.arms), 2), len(contrasts.drop_duplicates(["arm", "other_arm"]))
    if pairs > compared:
        yield (
            f"Of {pairs} pairs of arms {pairs - compared} are not compared: "
            "they have no seed in common, or were trained on different tasks."
        )


def _means(study: Study, means: pd.DataFrame) -> Grid:
    """Return a row an arm, of mean changes from the base, whose score is one for all seeds; else of means."""
    performance = study.table("performance_metrics")
    cells: dict[str, dict[str, str]] = {}
    for row in rows_of(means):
        base = None if performance is None else base_score(performance, row.task, row.metric)
        heading = f"{study.measured(row.task, row.metric)}, {'change' if base else 'value'}"
        cells.setdefault(row.arm, {"arm": row.arm})[heading] = f"{_mean(row, base)} (n = {row.seeds})"
    return grid_of(cells.values(), "Means over n seeds with 95 % t intervals")


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
    text = (
        f"{shown.sum() or 'None'} of {len(rows)} pairs of arms are shown to differ in {what}: an interval "
        f"without 0, and p at most {ALPHA:g} after Holm's correction over tasks."
    )
    tested = rows["p_holm"].dropna()
    if len(tested) > 1:
        text += (
            f" Of {len(tested)} pairs that do not differ about {ALPHA * len(tested):.1g} would seem to; "
            f"corrected for the number of pairs as well, {(holm(tested) <= ALPHA).sum() or 'none'} are shown."
        )
    yield text


def _contrast(row: Any) -> dict[str, str]:
    """Return the cells of a row of ``seed_contrasts`` that knows whether it is ``shown``."""
    cells = {
        "pair": f"{row.arm} minus {row.other_arm}",
        "seeds": str(row.seeds),
        "mean difference": change(row.difference, row.low, row.high, row.reason),
        "p": number(row.p_value, 2),
        "p after Holm": number(row.p_holm, 2),
        "shown": MISSING,
        "detectable with 80 % power": (
            f"{number(row.minimum_detectable, 2)} [{number(row.minimum_detectable_low, 2)}, "
            f"{number(row.minimum_detectable_high, 2)}]"
            if row.seeds >= SEEDS_FOR_SPREAD
            else MISSING
        ),
    }
    if interval(row.low, row.high):
        cells["shown"] = "yes" if row.shown else "no"
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
                f"NLL increase (nats a token) at equal {name}: at the furthest that all runs of the pair "
                "reach. The number of pairs is not corrected for",
            )
        unknown = Counter(found["reason"].iloc[0] for found in pairs if found["difference"].isna().all())
        for reason, count in unknown.items():
            which = f"{count} of {len(pairs)} pairs of arms"
            yield f"At equal {name} {which} have no comparison: {_plain(reason)}."


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


def _plain(reason: str) -> str:
    """Return a reason with the names of columns as readers know them."""
    for column, (name, _) in MATCHED.items():
        reason = reason.replace(column, name)
    return reason


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
    yield grid_of(
        rows, "Rank correlation (Spearman) with the NLL increase, 95 % intervals over resampled arms"
    )
    yield from _undefined(table)
    yield (
        "Where no interval is given nothing is shown. KL is taken on the text whose NLL is forgetting: it is "
        "no independent predictor. Along one run all of these tend to move with the step: a correlation over "
        "its checkpoints is no evidence, and over runs it is no cause."
    )


def _undefined(table: pd.DataFrame) -> Iterator[str]:
    """Say of which predictors there is no correlation over any checkpoints, and why."""
    for predictor, rows in table.groupby("predictor", sort=False):
        if rows["spearman"].isna().all():
            name = PREDICTORS.get(str(predictor), str(predictor))
            yield f"No correlation with {name}: {rows['reason'].iloc[0].split(';')[0]}."


def _over(scope: Any, points: Any, rows: pd.DataFrame) -> str:
    checkpoints, runs, arms = (rows[count].max() for count in ("checkpoints", "runs", "arms"))
    kind = "" if scope == "pooled" else f"{scope} "
    return (
        f"{'all' if points == 'all' else 'last'} {checkpoints} checkpoints: {runs} {kind}runs of {arms} arms"
    )


def _correlations(rows: pd.DataFrame) -> dict[str, str]:
    return {
        PREDICTORS.get(row.predictor, row.predictor): (
            f"{number(row.spearman, 2)} {interval(row.spearman_low, row.spearman_high) or '(no interval)'}"
        )
        for row in rows_of(rows)
    }
