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
    verbs = ("was trained", "learns most", "learn most, alike", "learns more")
    return _said(means, best, what, verbs, differences(best[0], last, seeds, items))


def _forgets(performance: pd.DataFrame, seeds: pd.DataFrame | None, items: pd.DataFrame | None) -> str | None:
    """Say which arm predicts general text least worse than the base."""
    rows = last_checkpoints(forgetting(performance)).dropna(subset=["nll_increase"])
    if rows.empty:
        return None
    increases = arm_means(rows.assign(value=rows["nll_increase"]))
    best = leaders(increases, higher=False)
    last = last_checkpoints(scores_of(performance, GENERAL_TEXT, "nll")).dropna(subset=["value"])
    what = f"loss on general text {signed(float(increases[best[0]]))} nats a token"
    verbs = ("was measured", "forgets least", "forget least, alike", "forgets less")
    return _said(increases, best, what, verbs, differences(best[0], last, seeds, items))


def _said(
    means: pd.Series, best: list[str], what: str, verbs: tuple[str, str, str, str], found: list[Difference]
) -> str:
    """Return who is ahead by what, and of whom that is told; or that nobody is.

    Verbs are of an arm that is alone, of one that is ahead, of several that are, and of none.
    """
    alone, ahead, together, more = verbs
    if len(means) == 1:
        return f"{best[0]} {alone}: {what}."
    if len(best) == len(means):
        return f"No arm {more} than another: all {len(means)} have {what}."
    others = [each for each in found if each.other not in best]
    return f"{names(best)} {ahead if len(best) == 1 else together}: {what}{compared(others)}."


ANSWERS = (
    Answer("learning", (SOURCE,), _learns, "Learning", BESIDE),
    Answer("forgetting", (SOURCE,), _forgets, "Forgetting", BESIDE),
)
