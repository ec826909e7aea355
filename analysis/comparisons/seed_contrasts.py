"""Scores of arms over seeds: means with intervals, paired differences, and what the study could have seen.

Every metric is compared at every step two arms were both scored at, and at each run's last. The p-values of
intermediate steps are many looks at the same runs: what is claimed should rest on the last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import ALPHA, RUNS, Finding, Listing, Sentence, scored, shown
from rankdrift.analysis.mathematics.statistics.intervals import (
    Interval,
    SeedDifference,
    paired_t_interval,
    t_interval,
)
from rankdrift.analysis.mathematics.statistics.seeds import (
    holm,
    minimum_detectable_difference,
    seed_control,
    stdev_interval,
)
from rankdrift.analysis.sources.arms import Arm, arm_pairs, arms_of, shared_seeds
from rankdrift.analysis.sources.observations import (
    compared_metrics,
    last_checkpoints,
    of_contrast,
    tuned_rows,
)
from rankdrift.analysis.sources.study_tables import read_study_tables
from rankdrift.analysis.sources.subjects import Subject

SOURCE = "performance_metrics"
MEANS, CONTRASTS = "seed_means", "seed_contrasts"
PLACE = {
    "checkpoint": "step (all runs at this step) or last (every run at its own last step)",
    "step": "optimizer step; of last, the largest of these runs' last steps",
    "task": "task, text, or mean over tasks",
    "metric": "metric of performance_metrics",
    "role": "trained, retention or text, as in performance_metrics",
}
MEANS_COLUMNS = {
    "arm": "folder name of its runs without the seed",
    "method": "full or lora",
    "rank": "LoRA rank; 0 for full fine-tuning",
    "tasks": "tasks trained on, joined by +",
    **PLACE,
    "seeds": "seeds scored",
    "mean": "mean over seeds",
    "stdev": "standard deviation over seeds (n - 1); NaN for one seed",
    "low": "lower end of the 95 % t interval of the mean",
    "high": "upper end",
    "reason": "why there is no interval; else empty",
}
CONTRASTS_COLUMNS = {
    "arm": "first arm: the one of the smaller rank, full fine-tuning before LoRA",
    "other_arm": "second arm, trained on the same tasks",
    **PLACE,
    "seeds": "seeds scored in both arms: the pairs",
    "difference": "mean over these seeds of first - second",
    "stdev": "standard deviation of the differences (n - 1); NaN for one seed",
    "low": "lower end of the 95 % paired t interval",
    "high": "upper end",
    "p_value": "two-sided, paired t test over seeds",
    "p_holm": "adjusted (Holm) over the trained tasks' leading metrics and their macro average, general "
    "text's NLL and the mean over retention tasks at this checkpoint; NaN for other metrics",
    "minimum_detectable": "difference that so many seeds of this stdev show with 80 % power at the 5 % level",
    "minimum_detectable_low": "lower end of its 95 % interval, which is that of stdev (chi-squared)",
    "minimum_detectable_high": "upper end",
    "control_pairs": "pairs of seeds of one arm: the negative control",
    "control_median": "median |difference| of such a pair: what a seed alone does",
    "control_largest": "largest of them",
    "control_share": "share of these pairs that differ by at least |difference|",
    "reason": "why values are NaN; else empty",
}


def compute_all(subjects: Sequence[Subject], params: Params, tables: Path) -> Tables:
    """Return means and contrasts over seeds; no rows where no run was scored."""
    performance = read_study_tables(tables, [SOURCE]).get(SOURCE)
    if performance is None or tuned_rows(performance).empty:
        return {}
    families = set(compared_metrics(performance))
    arms = arms_of(performance)
    means: list[Mapping[str, Any]] = []
    contrasts: list[pd.DataFrame] = []  # as dictionaries those of many arms would fill the memory
    columns = [name for name in CONTRASTS_COLUMNS if name != "p_holm"]
    for cell in _cells(performance):
        means += [_mean(arm, cell) for arm in arms if _of(arm, cell)]
        found = [_contrast(pair, cell) for pair in arm_pairs(arms) if _seeds(pair, cell)]
        contrasts += [pd.DataFrame(found, columns=columns)] if found else []
    frame = pd.concat(contrasts or [pd.DataFrame(columns=columns)], ignore_index=True)
    return {
        MEANS: pd.DataFrame(means, columns=list(MEANS_COLUMNS)),
        CONTRASTS: with_holm(frame, families)[list(CONTRASTS_COLUMNS)],
    }


def with_holm(contrasts: pd.DataFrame, family: set[tuple[str, str]]) -> pd.DataFrame:
    """Return the contrasts with ``p_holm``: a family is a pair of arms at a checkpoint, over the tasks.

    Last checkpoints are one family whatever their steps: runs may end, or a score be undefined, at different
    ones.
    """
    named = pd.Series(list(zip(contrasts["task"], contrasts["metric"], strict=True)), contrasts.index)
    members = contrasts[named.isin(family) & contrasts["p_value"].notna()]
    adjusted = pd.Series(np.nan, contrasts.index)
    steps = members["step"].where(members["checkpoint"] == "step", -1)
    for _, rows in members.groupby(["arm", "other_arm", "checkpoint", steps]):
        adjusted[rows.index] = holm(rows["p_value"])
    return contrasts.assign(p_holm=adjusted)


@dataclass(frozen=True)
class Cell:
    """One metric at one checkpoint of every run that was scored there."""

    checkpoint: str
    """``step`` or ``last``."""
    task: str
    metric: str
    role: str
    values: Mapping[str, float]
    """Run -> its score."""
    steps: Mapping[str, int]
    """Run -> the step of that score."""

    def place(self, runs: Iterable[str]) -> dict[str, Any]:
        """Return the columns of PLACE for some of its runs."""
        step = max(self.steps[run] for run in runs)
        score = {"task": self.task, "metric": self.metric, "role": self.role}
        return {"checkpoint": self.checkpoint, "step": step, **score}


def _cells(performance: pd.DataFrame) -> Iterator[Cell]:
    known = tuned_rows(performance).dropna(subset=["value"])
    metrics = ["task", "metric"]
    for checkpoint, rows, keys in (
        ("step", known, ["step", *metrics]),
        ("last", last_checkpoints(performance).dropna(subset=["value"]), metrics),
    ):
        for _, cell in rows.groupby(keys, sort=False):
            first, runs = cell.iloc[0], cell["run"]
            values = dict(zip(runs, cell["value"], strict=True))
            steps = dict(zip(runs, cell["step"].astype(int), strict=True))
            role = "trained" if (cell["role"] == "trained").any() else first["role"]
            yield Cell(checkpoint, first["task"], first["metric"], role, values, steps)


def _of(arm: Arm, cell: Cell) -> dict[str, float]:
    """Return an arm's values, run by run in the order of the seeds."""
    return {run: cell.values[run] for _, run in sorted(arm.runs.items()) if run in cell.values}


def _seeds(pair: tuple[Arm, Arm], cell: Cell) -> list[int]:
    one, other = pair
    scored = cell.values
    return [s for s in shared_seeds(one, other) if one.runs[s] in scored and other.runs[s] in scored]


def _mean(arm: Arm, cell: Cell) -> dict[str, Any]:
    observed = _of(arm, cell)
    found = t_interval(list(observed.values()))
    stdev = float(np.std(list(observed.values()), ddof=1)) if found.n > 1 else np.nan
    place = {**arm.identity(), **cell.place(observed), "seeds": found.n, "mean": found.mean, "stdev": stdev}
    return place | _ends(found) | {"reason": found.reason}


def _contrast(pair: tuple[Arm, Arm], cell: Cell) -> dict[str, Any]:
    one, other = pair
    seeds = _seeds(pair, cell)
    runs = [[arm.runs[seed] for seed in seeds] for arm in pair]
    first, second = ([cell.values[run] for run in of_arm] for of_arm in runs)
    found = paired_t_interval(second, first)
    interval = found.interval
    control = seed_control([list(_of(arm, cell).values()) for arm in pair], interval.mean)
    numbers = {
        "stdev": found.stdev,
        "p_value": found.p_value,
        **_detectable(found),
        "control_median": control.median,
        "control_largest": control.largest,
        "control_share": control.share,
    }
    return {
        "arm": one.name,
        "other_arm": other.name,
        **cell.place([*runs[0], *runs[1]]),
        "seeds": len(seeds),
        "difference": interval.mean,
        **_ends(interval),
        **{name: np.nan if value is None else value for name, value in numbers.items()},
        "control_pairs": control.pairs,
        "reason": "; ".join(reason for reason in (interval.reason, control.reason) if reason),
    }


def _detectable(found: SeedDifference) -> dict[str, float | None]:
    """Return the smallest difference that would show, and its interval; None without a spread to scale it."""
    names = ("minimum_detectable", "minimum_detectable_low", "minimum_detectable_high")
    if found.stdev is None or found.interval.reason:
        return dict.fromkeys(names)
    seeds = found.interval.n
    spreads = (found.stdev, *stdev_interval(found.stdev, seeds))
    factor = minimum_detectable_difference(seeds)
    return {name: spread * factor for name, spread in zip(names, spreads, strict=True)}


def _ends(interval: Interval) -> dict[str, float]:
    ends = {"low": interval.low, "high": interval.high}
    return {name: np.nan if end is None else end for name, end in ends.items()}


TOPIC = "Means and differences over seeds"
SEEDS_FOR_SPREAD = 3
"""Seeds below which a spread is no ground for what could be detected: of two it is one difference."""
PAIRS_SHOWN = 12
"""Rows of a table of pairs of arms; further ones, none surer than these, are counted."""


def _changes(means: pd.DataFrame, performance: pd.DataFrame) -> pd.DataFrame:
    """Return means as changes from the base, whose score is one for all seeds, or as values."""
    rows = scored(of_contrast(means).query("seeds > 1"), performance)
    unscored = rows["base"].isna()
    changes = {f"{name}_change": rows[name] - rows["base"] for name in ("mean", "low", "high")}
    return rows.assign(changed=rows["what"].mask(unscored), valued=rows["what"].where(unscored), **changes)


def _differences(contrasts: pd.DataFrame, performance: pd.DataFrame) -> pd.DataFrame:
    """Return contrasts, `shown` where interval and Holm's correction both say so."""
    rows = scored(of_contrast(contrasts).query("seeds > 1"), performance)
    rows["shown"] = (shown(rows) & ~(rows["p_holm"] > ALPHA)).astype(float)
    rows["verdict"] = rows["shown"].where(rows[["low", "high"]].notna().all(axis=1))
    rows["control_pairs"] = rows["control_pairs"].replace(0, np.nan)
    detectable = [name for name in rows.columns if name.startswith("minimum_detectable")]
    rows[detectable] = rows[detectable].where(rows["seeds"] >= SEEDS_FOR_SPREAD)
    return rows


def _surest(rows: pd.DataFrame) -> pd.DataFrame:
    part = f", the {PAIRS_SHOWN} surest of {len(rows)} pairs" if len(rows) > PAIRS_SHOWN else ""
    order = rows.sort_values(["shown", "p_value"], ascending=[False, True], kind="stable")
    return order.head(PAIRS_SHOWN).assign(part=part)


def _counted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with how many are shown, would be by chance, and are if corrected for pairs as well."""
    tested = rows["p_holm"].dropna()
    chance = (
        f" Of {len(tested)} pairs that do not differ about {ALPHA * len(tested):.1g} would seem to; "
        f"corrected for the number of pairs as well, {(holm(tested) <= ALPHA).sum() or 'none'} are shown."
    )
    yes = rows["shown"].sum()
    return rows.assign(yes=f"{yes:.0f}" if yes else "None", chance=chance if len(tested) > 1 else "")


def _coverage(contrasts: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row: how many pairs of arms there are, have `one` seed in common, are not compared."""
    rows, pairs = of_contrast(contrasts), math.comb(runs["arm"].nunique(), 2)
    compared, one = (len(found.groupby(["arm", "other_arm"])) for found in (rows, rows.query("seeds == 1")))
    return pd.DataFrame([{"pairs": pairs, "one": one, "left": pairs - compared}])


SEED_MEANS = Listing(
    {
        "arm": "{arm}",
        "{changed}, change": "{mean_change,low_change,high_change,reason:change} (n = {seeds})",
        "{valued}, value": "{mean,low,high,reason:estimate} (n = {seeds})",
    },
    "Means over n seeds with 95 % t intervals",
    by=("arm",),
)
DIFFERENCES = Listing(
    {
        "pair": "{arm} minus {other_arm}",
        "seeds": "{seeds}",
        "mean difference": "{difference,low,high,reason:change}",
        "p": "{p_value:number 2}",
        "p after Holm": "{p_holm:number 2}",
        "shown": "{verdict:verdict}",
        "detectable with 80 % power": "{minimum_detectable:number 2} "
        "{minimum_detectable_low,minimum_detectable_high:interval 2}",
        "two seeds of one arm: median, largest": "{control_median:number 2}, {control_largest:number 2} "
        "({control_pairs:count} pairs)",
    },
    "Differences of arms over seeds, {what}{part}: 95 % paired t intervals",
    _surest,
    by=("arm", "other_arm"),
)
SHOWN = Sentence(
    "{yes} of {arm.size} pairs of arms are shown to differ in {what}: an interval without 0, and p at most "
    f"{ALPHA:g} after Holm's correction over tasks.{{chance}}",
    _counted,
)
ONE_SEED = Sentence(
    "Pairs of arms with one seed in common: {one}; no interval, nothing shown.",
    lambda pairs: pairs.query("one > 0"),
)
NOT_COMPARED = Sentence(
    "Of {pairs} pairs of arms {left} are not compared: they have no seed in common, or were trained on "
    "different tasks.",
    lambda pairs: pairs.query("left > 0"),
)
FINDINGS = (
    Finding(TOPIC, (MEANS, SOURCE), _changes, (SEED_MEANS,)),
    Finding(TOPIC, (CONTRASTS, SOURCE), _differences, (DIFFERENCES, SHOWN), per=("task", "metric")),
    Finding(TOPIC, (CONTRASTS, RUNS), _coverage, (ONE_SEED, NOT_COMPARED)),
)
ANALYSIS = Analysis(
    name="seed_contrasts",
    columns={MEANS: MEANS_COLUMNS, CONTRASTS: CONTRASTS_COLUMNS},
    per="study",
    compute_all=compute_all,
    reads=(SOURCE,),
    version=4,
    findings=FINDINGS,
)
