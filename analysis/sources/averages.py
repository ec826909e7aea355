"""Averages over tasks of one checkpoint's scores: of retention tasks, and of the tasks trained on.

Forgetting has been published as the mean accuracy of three tasks (HellaSwag, ARC-challenge, WinoGrande:
arXiv 2405.09673). Tasks trained on have metrics of different scales: each is taken as a share of its best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankdrift.analysis.sources.observations import (
    MACRO_AVERAGE,
    MEAN_ACCURACY,
    RETENTION,
    TRAINED_TASKS,
    rows_of,
)

PUBLISHED = ("hellaswag", "arc_challenge", "winogrande")


@dataclass(frozen=True)
class Part:
    """A score that is averaged."""

    task: str
    metric: str
    best: float
    """What it is divided by."""


@dataclass(frozen=True)
class Average:
    """The mean over tasks of value / best."""

    task: str
    """What it is called beside tasks."""
    metric: str
    role: str
    parts: tuple[Part, ...]

    def row(self, scores: pd.DataFrame) -> dict[str, object]:
        """Return its row among a checkpoint's scores, which hold the parts'.

        Tasks have different items, so that errors are independent: stderr = sqrt(sum of squares) / tasks.
        NaN where a part's is.
        """
        indexed = scores.set_index(["task", "metric"])
        parts = indexed.loc[[(part.task, part.metric) for part in self.parts]]
        best = np.array([part.best for part in self.parts])
        return {
            "task": self.task,
            "metric": self.metric,
            "role": self.role,
            "value": float(np.mean(parts["value"].to_numpy() / best)),
            "stderr": float(np.sqrt(np.sum((parts["stderr"].to_numpy() / best) ** 2)) / len(best)),
            "n": int(parts["n"].sum()),
            "higher_is_better": True,
            "best": 1.0,
        }

    def items(self, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
        """Return the items of all parts as those of one task, or None where a part's items are not kept.

        ``tables`` are the tasks' items by their index. The average is sum(metric) / sum(weight): an item of a
        task of n has the weight 1 / n. Documents keep their items together within a task.
        """
        found = []
        for part in self.parts:
            table = tables.get(part.task)
            if table is None or part.metric not in table.columns:
                return None
            names = [f"{part.task}/{index}" for index in table.index]
            documents = table.get("document", table.index)
            items = {
                self.metric: table[part.metric].to_numpy(dtype=float) / part.best / len(table),
                "weight": 1 / len(table),
                "document": [f"{part.task}/{document}" for document in documents],
            }
            prompts = table.get("prompt_digest", table.get("prompt"))
            if prompts is not None:
                items["prompt"] = prompts.to_numpy()
            found.append(pd.DataFrame(items, index=names))
        return pd.concat(found)


def averages(scores: pd.DataFrame) -> list[Average]:
    """Return what can be averaged of one checkpoint's scores (rows of ``performance_metrics``)."""
    found = []
    retention = scores[(scores["role"] == "retention") & (scores["metric"] == "accuracy")]
    if set(PUBLISHED) <= set(retention["task"]):
        parts = tuple(Part(task, "accuracy", 1.0) for task in PUBLISHED)
        found.append(Average(RETENTION, MEAN_ACCURACY, "retention", parts))
    trained = scores[(scores["role"] == "trained") & (scores["task"] != TRAINED_TASKS)]
    leading = trained.drop_duplicates("task")
    shares = leading[leading["higher_is_better"].astype(bool) & (leading["best"] > 0)]
    if len(shares) > 1:
        parts = tuple(Part(row.task, row.metric, float(row.best)) for row in rows_of(shares))
        found.append(Average(TRAINED_TASKS, MACRO_AVERAGE, "trained", parts))
    return found
