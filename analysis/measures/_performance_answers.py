"""What a report begins with: which arm learns most, and which forgets least."""

from __future__ import annotations

import pandas as pd

from rankdrift.analysis.arm_differences import arm_means, compared, differences
from rankdrift.analysis.findings import Answer
from rankdrift.analysis.formats import number, score_name, signed
from rankdrift.analysis.sources.observations import (
    GENERAL_TEXT,
    TRAINED_TASKS,
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    scores_of,
)

SOURCE, BESIDE = "performance_metrics", ("seed_contrasts", "item_contrasts")


def _learns(performance: pd.DataFrame, seeds: pd.DataFrame | None, items: pd.DataFrame | None) -> str | None:
    """Say which arm has the best score, of several tasks by their macro average."""
    scores = sorted(leading_metrics(performance), key=lambda score: score[0] != TRAINED_TASKS)
    for task, metric in scores:
        last = last_checkpoints(scores_of(performance, task, metric)).dropna(subset=["value"])
        if len(last):
            break
    else:
        return None
    higher = bool(last["higher_is_better"].iloc[0])
    means = arm_means(last)
    best = str(means.idxmax() if higher else means.idxmin())
    base = base_score(performance, task, metric)
    origin = f" (base {number(base[0])})" if base else ""
    verb = "learns most" if len(means) > 1 else "was trained"
    text = f"{best} {verb}: {score_name(task, metric, higher)} {number(float(means[best]))}{origin}"
    return f"{text}{compared(differences(best, last, seeds, items))}."


def _forgets(performance: pd.DataFrame, seeds: pd.DataFrame | None, items: pd.DataFrame | None) -> str | None:
    """Say which arm predicts general text least worse than the base."""
    rows = last_checkpoints(forgetting(performance)).dropna(subset=["nll_increase"])
    if rows.empty:
        return None
    increases = arm_means(rows.assign(value=rows["nll_increase"]))
    best = str(increases.idxmin())
    last = last_checkpoints(scores_of(performance, GENERAL_TEXT, "nll")).dropna(subset=["value"])
    verb = "forgets least" if len(increases) > 1 else "was measured"
    text = f"{best} {verb}: its loss on general text changes by {signed(float(increases[best]))} nats a token"
    return f"{text}{compared(differences(best, last, seeds, items))}."


ANSWERS = (
    Answer("learning", (SOURCE,), _learns, "Learning", BESIDE),
    Answer("forgetting", (SOURCE,), _forgets, "Forgetting", BESIDE),
)
