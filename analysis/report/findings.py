"""What was found, computed from the tables, and with how much evidence: tables of runs, and sentences.

Whatever is said of every run, arm or pair is a table's column; a sentence is about all of them.

A difference between two models is stated with its interval over items, and called more than the choice of
items only where that excludes 0; several seeds give a t interval; one seed is said to be one. There are no
tests over layers: layers are not independent replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rankdrift.analysis.report import (
    comparisons_found,
    edits_found,
    gradients_found,
    layers_found,
    scores_found,
    weights_found,
)
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.study import Study

TOPICS: Mapping[str, Callable[[Study], Iterator[str | Grid]]] = {
    "Learning": scores_found.on_learning,
    "Forgetting": scores_found.on_forgetting,
    "Means and differences over seeds": comparisons_found.on_seeds,
    "Equal learning, equal update": comparisons_found.on_matched,
    "What goes with forgetting": comparisons_found.on_predictors,
    "Size of the update": weights_found.on_update_size,
    "Rank of the update": weights_found.on_rank,
    "Task vectors": weights_found.on_task_vectors,
    "Intruder dimensions": weights_found.on_intruders,
    "Leading subspaces": weights_found.on_subspaces,
    "Drift of the representations": layers_found.on_drift,
    "Gradients": gradients_found.on_gradients,
    "Gradients of the tasks": gradients_found.on_task_gradients,
    "Interventions on intruders": edits_found.on_interventions,
    "Between base and tuned weights": edits_found.on_interpolation,
}


@dataclass(frozen=True)
class Topic:
    """What is found on one subject, in order."""

    title: str
    parts: tuple[str | Grid, ...]


def findings(study: Study) -> list[Topic]:
    """Return the strength of the evidence, then the topics on which the study's tables say something."""
    sources = {"Evidence": _evidence, **TOPICS}
    topics = [
        Topic(title, tuple(part for part in source(study) if isinstance(part, str) or part.rows))
        for title, source in sources.items()
    ]
    return [topic for topic in topics if topic.parts]


def _evidence(study: Study) -> Iterator[str | Grid]:
    arms_of: dict[tuple[int, ...], list[str]] = {}
    for arm, runs in study.arms.items():
        arms_of.setdefault(tuple(runs), []).append(arm)
    several = [_of_seeds(seeds, arms) for seeds, arms in arms_of.items() if len(seeds) > 1]
    single = [_of_seeds(seeds, arms) for seeds, arms in arms_of.items() if len(seeds) == 1]
    if several:
        means = "Means over them have 95 % t intervals."
        if study.table("seed_means") is None:
            means = "The study has no table seed_means: no interval over them is given."
        yield f"Several seeds: {'; '.join(several)}. {means}"
    if single:
        yield (
            f"One seed: {'; '.join(single)}. No interval over seeds can be given for these: a difference "
            "between such runs includes a variation from seed to seed of unknown size."
        )
    commits = {
        str((run.environment.get("git") or {}).get("commit", "unknown"))
        for run in study.runs
        if run.environment
    }
    if len(commits) > 1:
        yield f"Runs were trained by code of different commits: {', '.join(sorted(commits))}."
    yield (
        "Standard errors, and the intervals of runs, are over scored items, for one trained model each: they "
        "say how far a number would move with other items, not with another training."
    )


def _of_seeds(seeds: tuple[int, ...], arms: list[str]) -> str:
    return f"{', '.join(arms)} ({', '.join(map(str, seeds))})"
