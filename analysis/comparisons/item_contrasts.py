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
from rankdrift.analysis.mathematics.statistics.bootstrap import (
    BootstrapInterval,
    paired_bootstrap,
    paired_bootstraps,
)
from rankdrift.analysis.mathematics.statistics.intervals import flip_test, mcnemar
from rankdrift.analysis.sources.arms import arm_pairs, arms_of, shared_seeds
from rankdrift.analysis.sources.averages import Average, averages
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
    "task": "task; a text, whose items are windows; or a mean over tasks, with the items of all of them",
    "metric": "metric that is a mean over items (of texts: over tokens; of means over tasks: every task "
    "counts the same)",
    "items": "items scored by both",
    "resampled": "how many the bootstrap draws from: items, or documents where the items name theirs",
    "difference": "metric of the first - of the second",
    "low": "lower end of the 95 % BCa interval, items (or documents) drawn in pairs, of means over tasks "
    "from all tasks together",
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
class Wanted:
    """A metric on which two models are compared."""

    number: int
    """Place of the contrast among all."""
    contrast: Contrast
    metric: str


@dataclass(frozen=True)
class Items:
    """The per-item tables of a study's last scored checkpoints."""

    folders: Mapping[str, Path]
    """Run (or base) -> its folder."""
    steps: Mapping[str, int]
    """Run (or base) -> its last scored step."""
    averages: Mapping[str, Mapping[str, Average]]
    """Run (or base) -> name -> mean over tasks."""

    def path(self, run: str, task: str) -> Path | None:
        """Return the file of a run's items, or None for a run without a folder."""
        return (
            RunLayout(self.folders[run]).score_items(self.steps[run], task) if run in self.folders else None
        )

    def read(self, run: str, task: str) -> pd.DataFrame | None:
        """Return a run's items of a task, or of several that are averaged; None where none are kept."""
        average = self.averages.get(run, {}).get(task)
        if average is None:
            return self._read(run, task)
        tables = {part.task: self._read(run, part.task) for part in average.parts}
        return average.items({name: table for name, table in tables.items() if table is not None})

    def _read(self, run: str, task: str) -> pd.DataFrame | None:
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
    items = Items(folders, {str(run): step for run, step in steps.items()}, _averages(performance))
    wanted: dict[str, list[Wanted]] = {}
    scored = _scored(performance)
    for number, contrast in enumerate(_contrasts(performance)):
        for task, metrics in _metrics(scored, contrast).items():
            wanted.setdefault(task, []).extend(Wanted(number, contrast, metric) for metric in metrics)
    rows = [
        (each.number, row) for task, of_task in wanted.items() for each, row in _compare(items, task, of_task)
    ]
    rows.sort(key=lambda numbered: numbered[0])  # contrast after contrast
    return {TABLE: pd.DataFrame([row for _, row in rows], columns=list(COLUMNS))} if rows else {}


def _averages(performance: pd.DataFrame) -> dict[str, dict[str, Average]]:
    """Return what is averaged of every run's last scored step, and of the base."""
    last = pd.concat([performance[performance["run"] == BASE], last_checkpoints(performance)])
    return {
        str(run): {average.task: average for average in averages(rows)} for run, rows in last.groupby("run")
    }


def _contrasts(performance: pd.DataFrame) -> Iterator[Contrast]:
    arms = arms_of(performance)
    if (performance["run"] == BASE).any():
        for arm in arms:
            yield from (Contrast("base", run, BASE, seed) for seed, run in arm.runs.items())
    for one, other in arm_pairs(arms):
        for seed in shared_seeds(one, other):
            yield Contrast("arms", one.runs[seed], other.runs[seed], seed)


def _scored(performance: pd.DataFrame) -> dict[str, dict[tuple[str, str], None]]:
    """Return run (or base) -> (task, metric) that it was scored on at its last step, in order."""
    last = pd.concat([performance[performance["run"] == BASE], last_checkpoints(performance)])
    found: dict[str, dict[tuple[str, str], None]] = {}
    for run, task, metric in zip(last["run"], last["task"], last["metric"], strict=True):
        found.setdefault(run, {})[task, metric] = None
    return found


def _metrics(
    scored: Mapping[str, Mapping[tuple[str, str], None]], contrast: Contrast
) -> dict[str, list[str]]:
    """Return task -> metrics that both models were scored on at their last steps."""
    found: dict[str, list[str]] = {}
    for task, metric in scored[contrast.run]:
        if (task, metric) in scored[contrast.other_run]:
            found.setdefault(task, []).append(metric)
    return found


def _compare(items: Items, task: str, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, dict[str, Any]]]:
    """Yield a row for every contrast and metric of a task that the items hold; with a reason if none pair."""
    runs = dict.fromkeys(run for each in wanted for run in (each.contrast.run, each.contrast.other_run))
    tables = {run: table for run in runs if (table := items.read(run, task)) is not None}
    kind = _alike(tables)
    known = [each for each in wanted if _holds(tables, each)]
    groups: dict[tuple[int, str], list[Wanted]] = {}
    for each in known:
        if kind[each.contrast.run] == kind[each.contrast.other_run]:
            groups.setdefault((kind[each.contrast.run], each.metric), []).append(each)
    found = {
        each: values
        for (_, metric), of_group in groups.items()
        for each, values in _intervals(tables, metric, of_group)
    }
    for each in known:
        contrast = each.contrast
        place = {
            "contrast": contrast.kind,
            "run": contrast.run,
            "step": items.steps[contrast.run],
            "other_run": contrast.other_run,
            "other_step": items.steps[contrast.other_run],
            "seed": contrast.seed,
            "task": task,
            "metric": each.metric,
        }
        pair = tables[contrast.run], tables[contrast.other_run]
        yield each, {**place, **(found[each] if each in found else _not_paired(*pair))}


def _alike(tables: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Return run -> number of the set of items that it was scored on."""
    firsts: list[pd.DataFrame] = []
    kinds = {}
    for run, table in tables.items():
        known = [number for number, first in enumerate(firsts) if same_items(first, table)]
        if not known:
            firsts.append(table)
        kinds[run] = known[0] if known else len(firsts) - 1
    return kinds


def _holds(tables: Mapping[str, pd.DataFrame], each: Wanted) -> bool:
    """Return whether the items of both models have the metric."""
    runs = (each.contrast.run, each.contrast.other_run)
    return all(run in tables and each.metric in tables[run].columns for run in runs)


def _intervals(
    tables: Mapping[str, pd.DataFrame], metric: str, wanted: Sequence[Wanted]
) -> Iterator[tuple[Wanted, dict[str, Any]]]:
    """Yield what contrasts on the same items give, their intervals all from the same draws."""
    runs = list(dict.fromkeys(run for w in wanted for run in (w.contrast.run, w.contrast.other_run)))
    place = {run: number for number, run in enumerate(runs)}
    pairs = [(place[w.contrast.other_run], place[w.contrast.run]) for w in wanted]
    found = paired_bootstraps([tables[run][metric] for run in runs], pairs, *_sampling(tables[runs[0]]))
    for each, interval in zip(wanted, found, strict=True):
        one, other = tables[each.contrast.run], tables[each.contrast.other_run]
        low, high = (np.nan if end is None else end for end in (interval.low, interval.high))
        numbers = {"resampled": interval.n, "difference": interval.value, "low": low, "high": high}
        yield each, {"items": len(one), **numbers, **_mcnemar(one, other, metric), "reason": interval.reason}


def _not_paired(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    unknown = ("resampled", "difference", "low", "high", "gained", "lost", "mcnemar_p")
    items = len(one.index.intersection(other.index))
    reason = "the two were scored on different items: score them again"
    return {**dict.fromkeys(unknown, np.nan), "items": items, "reason": reason}


def same_items(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two tables hold the same items: indices, and prompts or token counts where there are.

    Of a prompt the digest is compared where there is one: only its end is kept as text.
    """
    if not one.index.equals(other.index):
        return False
    both = one.columns.intersection(other.columns)
    prompt = "prompt_digest" if "prompt_digest" in both else "prompt"
    shared = [name for name in (prompt, "tokens") if name in both]
    return all(one[name].equals(other[name]) for name in shared)


def bootstrap(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> BootstrapInterval:
    """Return the difference one - other of a metric, per token where items are windows of text."""
    return paired_bootstrap(other[metric], one[metric], *_sampling(one))


def _sampling(items: pd.DataFrame) -> tuple[pd.Series | None, pd.Series | None]:
    """Return what is divided by (tokens of windows, or weights) and what is drawn: documents, if named."""
    return items.get("tokens", items.get("weight")), items.get("document")


def _mcnemar(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> dict[str, float]:
    """Return the columns of McNemar's test. A window's sum may be 0, of KL say, but is not right or wrong.

    Items of one document are not independent, as that test takes them to be: whole documents are exchanged.
    """
    of_text = bool({"tokens", "weight"} & set(one.columns))
    if of_text or not all(answers[metric].isin((0, 1)).all() for answers in (one, other)):
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
    reads=(SOURCE,),
    version=4,
)
