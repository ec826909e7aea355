"""What a report begins with: which arm learns most, and which forgets least."""

from __future__ import annotations

import pandas as pd

from rankdrift.analysis.arm_differences import Difference, arm_means, compared, differences, leaders, names
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
    best = leaders(means, higher)
    base = base_score(performance, task, metric)
    what = f"{score_name(task, metric, higher)} {number(float(means[best[0]]))}"
    what += f" (base {number(base[0])})" if base else ""
    verb = "was trained" if len(means) == 1 else "learns most" if len(best) == 1 else "learn most, alike"
    return _said(means, best, "learns more", what, verb, differences(best[0], last, seeds, items))


def _forgets(performance: pd.DataFrame, seeds: pd.DataFrame | None, items: pd.DataFrame | None) -> str | None:
    """Say which arm predicts general text least worse than the base."""
    rows = last_checkpoints(forgetting(performance)).dropna(subset=["nll_increase"])
    if rows.empty:
        return None
    increases = arm_means(rows.assign(value=rows["nll_increase"]))
    best = leaders(increases, higher=False)
    last = last_checkpoints(scores_of(performance, GENERAL_TEXT, "nll")).dropna(subset=["value"])
    what = f"loss on general text {signed(float(increases[best[0]]))} nats a token"
    verb = (
        "was measured"
        if len(increases) == 1
        else "forgets least"
        if len(best) == 1
        else "forget least, alike"
    )
    return _said(increases, best, "forgets less", what, verb, differences(best[0], last, seeds, items))


def _said(means: pd.Series, best: list[str], more: str, what: str, verb: str, found: list[Difference]) -> str:
    """Return who is ahead by what, and of whom that is told; or that nobody is."""
    if len(best) == len(means) > 1:
        return f"No arm {more} than another: all {len(means)} have {what}."
    others = [each for each in found if each.other not in best]
    return f"{names(best)} {verb}: {what}{compared(others)}."


ANSWERS = (
    Answer("learning", (SOURCE,), _learns, "Learning", BESIDE),
    Answer("forgetting", (SOURCE,), _forgets, "Forgetting", BESIDE),
)
