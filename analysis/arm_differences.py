"""The best arm of a study by one score, and whether it is told apart from the others: one sentence of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rankdrift.analysis.findings import ALPHA
from rankdrift.analysis.formats import ROUNDING, interval, number, signed
from rankdrift.analysis.mathematics.statistics.seeds import minimum_detectable_difference
from rankdrift.analysis.sources.observations import rows_of, with_arms

POWER = (1.96 + 0.84) / 1.96
"""Half-widths of a 95 % interval at which a difference is found in four of five cases."""
MOST_SEEDS = 1000
NAMED = 4
"""Arms that a sentence names one by one."""


@dataclass(frozen=True)
class Difference:
    """Best arm less another one."""

    other: str
    value: float
    low: float
    high: float
    unit: str
    """What it is over: "3 seeds", "100 items"."""
    count: int
    of_seeds: bool
    stdev: float = math.nan
    """Over seeds, of the paired differences."""

    @property
    def is_shown(self) -> bool:
        """Whether its interval excludes 0."""
        return self.low * self.high > 0

    @property
    def needed(self) -> float:
        """Seeds or items that would show a difference of this size in four of five cases; NaN if unknown."""
        size = abs(self.value)
        if not size > 0 or math.isnan(self.low):
            return math.nan
        if self.of_seeds:
            enough = (
                n for n in range(2, MOST_SEEDS) if minimum_detectable_difference(n) * self.stdev <= size
            )
            return next(enough, math.nan)
        half = (self.high - self.low) / 2
        return math.ceil(self.count * (POWER * half / size) ** 2)


def arm_means(last: pd.DataFrame) -> pd.Series:
    """Return arm -> mean over its runs of `value`, from rows of last checkpoints, in their order."""
    return with_arms(last).groupby("arm", sort=False)["value"].mean()


def leaders(means: pd.Series, higher: bool) -> list[str]:
    """Return the arms whose mean no other one beats, by more than rounding, in their order.

    >>> leaders(pd.Series({"a": 0.5, "b": 0.75, "c": 0.75}), higher=True)
    ['b', 'c']
    """
    best = means.max() if higher else means.min()
    return list(means.index[(means - best).abs() <= ROUNDING])


def differences(
    best: str, last: pd.DataFrame, seeds: pd.DataFrame | None, items: pd.DataFrame | None
) -> list[Difference]:
    """Return how the best arm differs from every other one: over seeds if there are several, else over items.

    Parameters
    ----------
    best
        Name of the arm.
    last
        Rows of one score at last checkpoints of trained runs: `run`, `seed`, `task`, `metric`, `value`.
    seeds
        `seed_contrasts`.
    items
        `item_contrasts`.

    """
    named = with_arms(last)
    task, metric = named[["task", "metric"]].iloc[0]
    found = []
    for other in dict.fromkeys(named["arm"]):
        if other == best:
            continue
        of_seeds = _over_seeds(seeds, best, other, task, metric)
        pairs = named[named["arm"] == best].merge(named[named["arm"] == other], on="seed")
        found.append(of_seeds or _over_items(items, pairs, other, task, metric) or _alone(named, best, other))
    return found


def _over_seeds(
    table: pd.DataFrame | None, best: str, other: str, task: str, metric: str
) -> Difference | None:
    if table is None:
        return None
    rows = table[(table["checkpoint"] == "last") & (table["task"] == task) & (table["metric"] == metric)]
    for sign, one, two in ((1, best, other), (-1, other, best)):
        for row in rows_of(rows[(rows["arm"] == one) & (rows["other_arm"] == two)].dropna(subset=["low"])):
            low, high = sorted((sign * row.low, sign * row.high))
            value = sign * row.difference
            return Difference(other, value, low, high, f"{row.seeds} seeds", row.seeds, True, row.stdev)
    return None


def _over_items(
    table: pd.DataFrame | None, pairs: pd.DataFrame, other: str, task: str, metric: str
) -> Difference | None:
    """Return the contrast of the first seed that both arms have."""
    if table is None or pairs.empty:
        return None
    rows = table[(table["task"] == task) & (table["metric"] == metric)]
    best_run, other_run = pairs[["run_x", "run_y"]].iloc[0]
    for sign, one, two in ((1, best_run, other_run), (-1, other_run, best_run)):
        for row in rows_of(rows[(rows["run"] == one) & (rows["other_run"] == two)].dropna(subset=["low"])):
            low, high = sorted((sign * row.low, sign * row.high))
            if row.mcnemar_p == row.mcnemar_p and row.mcnemar_p >= ALPHA:  # an exact test decides
                low, high = min(low, 0.0), max(high, 0.0)
            return Difference(other, sign * row.difference, low, high, f"{row.items} items", row.items, False)
    return None


def _alone(named: pd.DataFrame, best: str, other: str) -> Difference:
    means = named.groupby("arm")["value"].mean()
    return Difference(other, float(means[best] - means[other]), math.nan, math.nan, "", 0, False)


def compared(found: list[Difference]) -> str:
    """Return a sentence's end: from which arms the best is told apart, and what would tell the rest.

    Of the nearest arm the difference is stated.
    """
    if not found:
        return ""
    nearest = min(found, key=lambda each: abs(each.value))
    apart = [each.other for each in found if each.is_shown]
    unknown = [each.other for each in found if math.isnan(each.low)]
    alike = [each for each in found if not each.is_shown and not math.isnan(each.low)]
    text = f"; {signed(nearest.value)}"
    if not math.isnan(nearest.low):
        text += f" {interval(nearest.low, nearest.high)} over {nearest.unit}"
    text += f" against {nearest.other}" + (", the nearest" if len(found) > 1 else "")
    if alike:
        text += f". Not told apart from {names([each.other for each in alike])}{_needed(alike)}"
    elif len(found) > 1 and apart and not unknown:
        text += f", and told apart from all {len(found)} others"
    if unknown:
        text += f". No interval against {names(unknown)}: measure more seeds, or the same items"
    return text


def _needed(alike: list[Difference]) -> str:
    """Return what would tell the nearest of them apart."""
    known: list[Any] = [each for each in alike if each.needed == each.needed]
    if not known:
        return ""
    least = max(known, key=lambda each: abs(each.value))
    kind = "seeds" if least.of_seeds else "items"
    if least.needed <= least.count:  # by its interval; an exact test did not show it
        return f" by the exact test over {least.unit}"
    return (
        f": about {number(float(least.needed))} {kind} would show a difference of {number(abs(least.value))}"
    )


def names(arms: list[str]) -> str:
    """Return arms by name, of many some."""
    return (
        ", ".join(arms) if len(arms) <= NAMED else f"{', '.join(arms[:NAMED])} and {len(arms) - NAMED} more"
    )
