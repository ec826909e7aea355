"""Learning against forgetting, and forgetting of two arms where both have learnt, or moved, equally far.

"LoRA forgets less" can mean that it learnt less or moved less (arXiv 2405.09673 shows the plane). Hence the
comparison at equal task loss and at equal size of the update, each run interpolated between the base model
and its own checkpoints, and differences taken seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import Answer, Finding, Listing, Sentence, shown
from rankdrift.analysis.formats import filled
from rankdrift.analysis.mathematics.statistics.intervals import paired_t_interval
from rankdrift.analysis.mathematics.statistics.matching import Trajectory, common_levels
from rankdrift.analysis.sources.arms import Arm, arm_pairs, arms_of, shared_seeds
from rankdrift.analysis.sources.checkpoint_summary import KEYS, MEASURES, SOURCES, checkpoint_summaries
from rankdrift.analysis.sources.observations import base_score, leading_metrics, rows_of, scores_of
from rankdrift.analysis.sources.study_tables import read_study_tables
from rankdrift.analysis.sources.subjects import Subject

PLANE, MEANS, SEEDS = "learning_forgetting", "matched_comparison", "matched_seeds"
MATCHED = {"task_loss": -1, "relative_update_norm": 1}
"""What is made equal, and whether training makes it fall (-1) or grow (1)."""
LEVELS = 5
"""Levels at which two arms are compared, evenly spaced over what both reach."""

SCORE = {
    "task": "a task trained on, or trained_tasks for their mean; empty where none was scored",
    "metric": "its leading metric",
    "score": "the metric's value",
    "score_gain": "its increase over the base model's",
}
PLANE_COLUMNS = {
    **{name: f"{name} of the checkpoint" for name in KEYS},
    **SCORE,
    **MEASURES,
    "reason": "what is NaN because it was not measured; else empty",
}
ARMS = {
    "arm": "first arm: the one of the smaller rank, full fine-tuning before LoRA",
    "other_arm": "second arm, trained on the same tasks",
    "matched": "what is made equal: task_loss or relative_update_norm (see learning_forgetting)",
    "position": "from 0, the base model, to 1, the furthest value that all runs compared reach",
    "level": "the value at which the arms are compared; NaN where there is none",
}
MEANS_COLUMNS = {
    **ARMS,
    "seeds": "seeds run in both arms and compared",
    "forgetting": "mean over seeds of the first arm's nll_increase at that value, nats a token",
    "other_forgetting": "the same of the second arm",
    "difference": "mean over seeds of first - second: above 0, the second arm forgets less",
    "low": "lower end of its 95 % paired t interval over seeds",
    "high": "upper end",
    "reason": "why values are NaN; else empty",
}
SEEDS_COLUMNS = {
    **ARMS,
    "seed": "seed of both runs",
    "forgetting": "nll_increase of the first arm's run where it first reaches the value, nats a token",
    "other_forgetting": "the same of the second arm's run",
    "difference": "first - second",
}


def compute_all(subjects: Sequence[Subject], params: Params, tables: Path) -> Tables:
    """Return the three tables; no rows where nothing was measured, or no two arms share a seed."""
    found = read_study_tables(tables, SOURCES)
    summary = checkpoint_summaries(found)
    if summary.empty:
        return {}
    means, seeds = [], []
    from_the_base = with_origins(summary, found.get("training_metrics"))
    paths = {matched: trajectories(from_the_base, matched) for matched in MATCHED}
    for one, other in arm_pairs(arms_of(summary)):
        for matched in MATCHED:
            of_means, of_seeds = compare(paths[matched], one, other, matched)
            means += of_means
            seeds += of_seeds
    return {
        PLANE: learning_forgetting(summary, found.get("performance_metrics")),
        MEANS: pd.DataFrame(means, columns=list(MEANS_COLUMNS)),
        SEEDS: pd.DataFrame(seeds, columns=list(SEEDS_COLUMNS)),
    }


def learning_forgetting(summary: pd.DataFrame, performance: pd.DataFrame | None) -> pd.DataFrame:
    """Return the plane: a row a checkpoint and task, the task's score beside the measures of forgetting."""
    scores = pd.DataFrame(list(_scores(performance)), columns=["run", "step", *SCORE])
    rows = summary.merge(scores, on=["run", "step"], how="left")
    rows[["task", "metric"]] = rows[["task", "metric"]].fillna("")
    rows["reason"] = [_missing(row) for row in rows_of(rows)]
    return rows[list(PLANE_COLUMNS)]


def with_origins(summary: pd.DataFrame, training: pd.DataFrame | None) -> pd.DataFrame:
    """Return the summary with the base model as every run's step 0: no update, nothing forgotten.

    Its loss on the trained tasks is the one a run logged before its first step; without it a run's path of
    losses begins at its first checkpoint.
    """
    origins = summary.drop_duplicates("run").assign(step=0, nll_increase=0.0, relative_update_norm=0.0)
    losses: dict[Any, float] = {}
    if training is not None:
        before = training[(training["split"] == "validation") & (training["step"] == 0)]
        losses = before.drop_duplicates("run", keep="last").set_index("run")["loss"].to_dict()
    origins["task_loss"] = origins["run"].map(losses).astype(float)
    return pd.concat([origins, summary], ignore_index=True)


def _scores(performance: pd.DataFrame | None) -> Iterator[tuple[Any, ...]]:
    """Yield (run, step, task, metric, score, gain) of every task's leading metric."""
    if performance is None:
        return
    for task, metric in leading_metrics(performance):
        base = base_score(performance, task, metric)
        for row in rows_of(scores_of(performance, task, metric)):
            gain = row.value - base[0] if base else np.nan
            yield row.run, row.step, task, metric, row.value, gain


def _missing(row: Any) -> str:
    names = [name for name in ("score", "score_gain", *MEASURES) if np.isnan(getattr(row, name))]
    return f"not measured: {', '.join(names)}" if names else ""


def compare(
    paths: Mapping[str, Trajectory], one: Arm, other: Arm, matched: str
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return rows of the means over seeds and of the seeds, at every level that all runs reach.

    Without such a level there is one row of means that says why, and none of seeds.
    """
    place = {"arm": one.name, "other_arm": other.name, "matched": matched}
    seeds = shared_seeds(one, other)
    pairs = [tuple(paths[arm.runs[seed]] for arm in (one, other)) for seed in seeds]
    levels = common_levels([trajectory for pair in pairs for trajectory in pair], LEVELS)
    if not len(levels):
        return [place | _no_level(seeds, matched)], []
    means: list[Mapping[str, Any]] = []
    rows: list[Mapping[str, Any]] = []
    for position, level in zip(np.linspace(0, 1, LEVELS + 1)[1:], levels, strict=True):
        at = place | {"position": float(position), "level": float(level * MATCHED[matched])}
        outcomes = np.array([[trajectory.at(level) for trajectory in pair] for pair in pairs])
        means.append(at | _mean(outcomes))
        rows += [
            at | {"seed": seed, "forgetting": a, "other_forgetting": b, "difference": a - b}
            for seed, (a, b) in zip(seeds, outcomes, strict=True)
        ]
    return means, rows


def trajectories(summary: pd.DataFrame, matched: str) -> dict[str, Trajectory]:
    """Return run -> its forgetting over what is made equal, at the checkpoints where both are known."""
    found = {}
    for run, of_run in summary.groupby("run"):
        rows = of_run.dropna(subset=[matched, "nll_increase"]).sort_values("step")
        found[str(run)] = Trajectory(
            MATCHED[matched] * rows[matched].to_numpy(), rows["nll_increase"].to_numpy()
        )
    return found


def _no_level(seeds: Sequence[int], matched: str) -> dict[str, Any]:
    reason = (
        f"no value of {matched} that all {2 * len(seeds)} runs reach from the base on"
        if seeds
        else "the arms share no seed"
    )
    numbers = ("position", "level", "forgetting", "other_forgetting", "difference", "low", "high")
    return {**dict.fromkeys(numbers, np.nan), "seeds": len(seeds), "reason": reason}


def _mean(outcomes: np.ndarray) -> dict[str, Any]:
    """Return the means over seeds of outcomes (seeds, 2), and the interval of their difference."""
    found = paired_t_interval(outcomes[:, 1], outcomes[:, 0]).interval
    forgetting, other = outcomes.mean(axis=0)
    return {
        "seeds": found.n,
        "forgetting": forgetting,
        "other_forgetting": other,
        "difference": found.mean,
        "low": np.nan if found.low is None else found.low,
        "high": np.nan if found.high is None else found.high,
        "reason": found.reason,
    }


NAMES = {"task_loss": "validation loss", "relative_update_norm": "relative size of the update"}
UNITS = {"task_loss": " nats a target token", "relative_update_norm": ""}


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """Return the levels with who forgets less, if that is shown, and with the names readers know."""
    less = table["arm"].where(table["difference"] <= 0, table["other_arm"]) + " forgets less"
    return table.assign(
        name=table["matched"].map(NAMES),
        unit=table["matched"].map(UNITS),
        reason=table["reason"].replace(NAMES, regex=True),
        verdict=less.where(shown(table), "nothing"),
        known=table.groupby(["matched", "arm", "other_arm"])["difference"].transform("count"),
    )


def _unmatched(rows: pd.DataFrame) -> pd.DataFrame:
    pairs = rows.drop_duplicates(["arm", "other_arm"])
    return pairs[pairs["known"] == 0].assign(pairs=len(pairs))


AT_FURTHEST = Listing(
    {
        "pair": "{arm} minus {other_arm}",
        "seeds": "{seeds}",
        "at": "{level:number}{unit}",
        "first": "{forgetting:number}",
        "second": "{other_forgetting:number}",
        "difference, 95 % paired t interval": "{difference,low,high,reason:change}",
        "shown": "{verdict}",
        "difference over all levels": "{difference.min:signed} to {difference.max:signed}",
    },
    "NLL increase (nats a token) at equal {name}: at the furthest that all runs of the pair reach. The "
    "number of pairs is not corrected for",
    lambda rows: rows.dropna(subset=["difference"]).sort_values("position", ascending=False, kind="stable"),
    by=("arm", "other_arm"),
)
UNMATCHED = Sentence(
    "At equal {name} {arm.size} of {pairs} pairs of arms have no comparison: {reason}.",
    _unmatched,
    per=("reason",),
)


def _at_equal_learning(means: pd.DataFrame) -> str | None:
    """Say who forgets less where both have learnt equally far: how much one learnt is not in that."""
    known = means[means["matched"] == "task_loss"].dropna(subset=["difference"])
    furthest = known.loc[known.groupby(["arm", "other_arm"], sort=False)["position"].idxmax()]
    if furthest.empty:
        return None
    sure = furthest[shown(furthest)]
    pairs = f"{len(furthest)} pair{'' if len(furthest) == 1 else 's'} of arms"
    if sure.empty:
        return (
            f"Where both have learnt equally far no difference in forgetting is shown, among {pairs}; the "
            f"largest is {filled('{difference:signed}', _largest(furthest))} nats a token"
            f"{_uncertain(_largest(furthest).iloc[0])}."
        )
    first = _judged(_largest(sure)).iloc[0]
    text = filled("{difference,low,high,reason:change}", _largest(sure))
    return (
        f"Where both have learnt equally far {first['verdict']}, by {text.lstrip('+-')} nats a token "
        f"({first['arm']} against {first['other_arm']}); shown for {len(sure)} of {pairs}."
    )


def _uncertain(row: Any) -> str:
    """Say why a difference is not shown."""
    if row["low"] != row["low"]:
        return f" ({row['reason']})"
    return f" (95 % interval {filled('{low,high:interval}', pd.DataFrame([row]))})"


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[[rows["difference"].abs().idxmax()]]


FINDING = Finding(
    "Equal learning, equal update", (MEANS,), _judged, (AT_FURTHEST, UNMATCHED), per=("matched",)
)
ANALYSIS = Analysis(
    name="comparisons",
    columns={PLANE: PLANE_COLUMNS, MEANS: MEANS_COLUMNS, SEEDS: SEEDS_COLUMNS},
    per="study",
    compute_all=compute_all,
    reads=SOURCES,
    version=4,
    findings=(FINDING,),
    answers=(Answer("equal learning", (MEANS,), _at_equal_learning, FINDING.topic),),
)
