"""Models compared item by item at their last scored checkpoint: each run with the base, arms of one seed.

Item by item, because two models that answer the same questions are alike in most of them: the interval of
the paired difference is a fraction of what the two standard errors suggest (arXiv 2411.00640). It speaks of
these two models on other items, not of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.mathematics.statistics.bootstrap import BootstrapInterval, paired_bootstrap
from rankdrift.analysis.mathematics.statistics.intervals import flip_test, mcnemar
from rankdrift.analysis.sources.arms import arm_pairs, arms_of, shared_seeds
from rankdrift.analysis.sources.observations import BASE, last_checkpoints
from rankdrift.analysis.sources.study_tables import read_study_tables
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout

SOURCE, TABLE = "performance_metrics", "item_contrasts"
COLUMNS = {
    "contrast": "base (a run and the base model) or arms (two runs of one seed, trained on the same tasks)",
    "run": "first model",
    "step": "its last scored step",
    "other_run": "second model",
    "other_step": "its last scored step",
    "seed": "seed of the run, or of both",
    "task": "task, or general_text, whose items are windows of text",
    "metric": "metric that is a mean over items (on general text: over tokens)",
    "items": "items scored by both",
    "resampled": "how many the bootstrap draws from: items, or documents where the items name theirs",
    "difference": "metric of the first - of the second",
    "low": "lower end of the 95 % BCa interval, items (or documents) drawn in pairs",
    "high": "upper end",
    "gained": "items only the first gets right; NaN where the metric is not right or wrong, or of text",
    "lost": "items only the second gets right; NaN likewise",
    "mcnemar_p": "exact two-sided p-value of McNemar's test; where items name their documents, of exchanging "
    "the models in whole documents; NaN likewise",
    "reason": "why values are NaN; else empty",
}


@dataclass(frozen=True)
class Contrast:
    """Two models to compare."""

    kind: str
    run: str
    other_run: str
    seed: int


@dataclass(frozen=True)
class Items:
    """The per-item tables of a study's last scored checkpoints."""

    folders: Mapping[str, Path]
    """Run (or base) -> its folder."""
    steps: Mapping[str, int]
    """Run (or base) -> its last scored step."""

    def path(self, run: str, task: str) -> Path | None:
        """Return the file of a run's items, or None for a run without a folder."""
        return (
            RunLayout(self.folders[run]).score_items(self.steps[run], task) if run in self.folders else None
        )

    def read(self, run: str, task: str) -> pd.DataFrame | None:
        """Return a run's items by their index, or None where none are kept."""
        path = self.path(run, task)
        if path is None or not path.exists():
            return None
        return files.read_table(path).set_index("index").sort_index()


def compute_all(subjects: Sequence[Subject], params: Params, tables: Path) -> Tables:
    """Return a row a contrast and metric; none where the study keeps no items."""
    performance = read_study_tables(tables, [SOURCE]).get(SOURCE)
    if performance is None:
        return {}
    folders = {subject.run: subject.run_dir for subject in subjects if subject.run_dir is not None}
    steps = performance.groupby("run")["step"].max().astype(int).to_dict()
    items = Items(folders, {str(run): step for run, step in steps.items()})
    rows = [
        row
        for contrast in _contrasts(performance)
        for task, metrics in _metrics(performance, contrast).items()
        for row in _compare(items, contrast, task, metrics)
    ]
    return {TABLE: pd.DataFrame(rows, columns=list(COLUMNS))} if rows else {}


def _contrasts(performance: pd.DataFrame) -> Iterator[Contrast]:
    arms = arms_of(performance)
    if (performance["run"] == BASE).any():
        for arm in arms:
            yield from (Contrast("base", run, BASE, seed) for seed, run in arm.runs.items())
    for one, other in arm_pairs(arms):
        for seed in shared_seeds(one, other):
            yield Contrast("arms", one.runs[seed], other.runs[seed], seed)


def _metrics(performance: pd.DataFrame, contrast: Contrast) -> dict[str, list[str]]:
    """Return task -> metrics that both models were scored on at their last steps."""
    base = performance[performance["run"] == BASE]
    last = pd.concat([base, last_checkpoints(performance)])
    of_run = {
        run: last[last["run"] == run].set_index(["task", "metric"]).index
        for run in (contrast.run, contrast.other_run)
    }
    found: dict[str, list[str]] = {}
    for task, metric in of_run[contrast.run]:
        if (task, metric) in of_run[contrast.other_run]:
            found.setdefault(task, []).append(metric)
    return found


def _compare(items: Items, contrast: Contrast, task: str, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for every metric of a task that the items hold; with a reason where they do not pair."""
    one, other = (items.read(run, task) for run in (contrast.run, contrast.other_run))
    if one is None or other is None:
        return
    place = {
        "contrast": contrast.kind,
        "run": contrast.run,
        "step": items.steps[contrast.run],
        "other_run": contrast.other_run,
        "other_step": items.steps[contrast.other_run],
        "seed": contrast.seed,
        "task": task,
    }
    for metric in metrics:
        if metric in one.columns and metric in other.columns:
            yield {**place, "metric": metric, **_values(one, other, metric)}


def _values(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> dict[str, Any]:
    if not same_items(one, other):
        unknown = ("resampled", "difference", "low", "high", "gained", "lost", "mcnemar_p")
        items = len(one.index.intersection(other.index))
        reason = "the two were scored on different items: score them again"
        return {**dict.fromkeys(unknown, np.nan), "items": items, "reason": reason}
    found = bootstrap(one, other, metric)
    low, high = (np.nan if end is None else end for end in (found.low, found.high))
    numbers = {"resampled": found.n, "difference": found.value, "low": low, "high": high}
    return {"items": len(one), **numbers, **_mcnemar(one, other, metric), "reason": found.reason}


def same_items(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two tables hold the same items: indices, and prompts or token counts where there are."""
    if not one.index.equals(other.index):
        return False
    shared = [name for name in ("prompt", "tokens") if name in one.columns and name in other.columns]
    return all(one[name].equals(other[name]) for name in shared)


def bootstrap(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> BootstrapInterval:
    """Return the difference one - other of a metric, per token where items are windows of text."""
    return paired_bootstrap(
        first=other[metric],
        second=one[metric],
        weights=one["tokens"] if "tokens" in one.columns else None,
        clusters=one["document"] if "document" in one.columns else None,
    )


def _mcnemar(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> dict[str, float]:
    """Return the columns of McNemar's test. A window's sum may be 0, of KL say, but is not right or wrong.

    Items of one document are not independent, as that test takes them to be: whole documents are exchanged.
    """
    answers = pd.concat([one[metric], other[metric]])
    if "tokens" in one.columns or not answers.isin((0, 1)).all():
        return dict.fromkeys(("gained", "lost", "mcnemar_p"), np.nan)
    found = mcnemar(other[metric], one[metric])
    p_value = found.p_value
    if "document" in one.columns:
        p_value = flip_test(other[metric], one[metric], one["document"])
    return {"gained": found.gained, "lost": found.lost, "mcnemar_p": p_value}


ANALYSIS = Analysis(
    name="item_contrasts",
    columns={TABLE: COLUMNS},
    per="study",
    compute_all=compute_all,
    parameters=(),
    reads=(SOURCE,),
    version=3,
)
