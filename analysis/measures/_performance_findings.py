"""What was learnt and forgotten: changes of scores against the base and between runs.

Intervals and tests over items are those of ``item_contrasts``; values alone are of ``performance_metrics``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankdrift.analysis.findings import ALPHA, Finding, Headline, Listing, Sentence, scored, shown
from rankdrift.analysis.formats import score_name, with_error
from rankdrift.analysis.sources.observations import (
    BASE,
    GENERAL_TEXT,
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    scores_of,
    with_arms,
)

PERFORMANCE, CONTRASTS = "performance_metrics", "item_contrasts"
STATED = ["low", "high", "gained", "lost", "mcnemar_p", "items", "resampled", "difference", "reason"]
"""What a contrast says of two models, beside which they are."""


def _learnt(performance: pd.DataFrame, contrasts: pd.DataFrame | None) -> pd.DataFrame:
    """Return what each run gained on each task over the base, and full fine-tuning over the other runs."""
    scores = [scores_of(performance, *score) for score in leading_metrics(performance)]
    found = [_beside(last_checkpoints(rows), performance, contrasts) for rows in scores]
    return pd.concat(found) if found else performance.head(0)


def _forgotten(performance: pd.DataFrame, contrasts: pd.DataFrame | None) -> pd.DataFrame:
    """Return how much worse each run predicts general text than the base, and how far it moved."""
    last = last_checkpoints(forgetting(performance)).assign(task=GENERAL_TEXT, metric="nll")
    return _beside(last.assign(value=last["nll"]), performance, contrasts)


def _beside(last: pd.DataFrame, performance: pd.DataFrame, contrasts: pd.DataFrame | None) -> pd.DataFrame:
    """Return one metric's scores beside the base's (`against` it), and full fine-tuning's against others."""
    if last.empty:
        return last
    last = scored(last, performance)
    task, metric, *base = last[["task", "metric", "base", "base_stderr"]].iloc[0]
    origin = f"has {with_error(*base)}" if base[0] == base[0] else "was not scored"
    last = last.assign(score=score_name(task, metric), origin=origin, change=last["value"] - last["base"])
    table = performance.head(0) if contrasts is None else scores_of(contrasts, task, metric)
    table = table.reindex(columns=["run", "step", "other_run", "other_step", "seed", *STATED])
    from_base = table[table["other_run"] == BASE][["run", "step", *STATED]]
    changes = last.merge(from_base, how="left", on=["run", "step"])
    unknown = f"{'the study has no' if contrasts is None else 'not in the'} table {CONTRASTS}"
    changes = changes.assign(reason=changes["reason"].fillna(unknown), against=BASE)
    return pd.concat([_judged(found) for found in (changes, _of_methods(last, table)) if len(found)])


def _of_methods(last: pd.DataFrame, contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the contrasts of last checkpoints of which one alone is of full fine-tuning: it minus `run`."""
    runs = last[["run", "step", "method", "task", "metric", "what"]]
    others = runs[["run", "step", "method"]].add_prefix("other_")
    pairs = contrasts.merge(runs, on=["run", "step"]).merge(others, on=["other_run", "other_step"])
    sides = {"run": "other_run", "method": "other_method"}
    turned = pairs.rename(columns=sides | {other: one for one, other in sides.items()})
    turned = turned.assign(difference=-pairs["difference"], low=-pairs["high"], high=-pairs["low"])
    rows = pd.concat([pairs, turned]).query("method == 'full' and other_method != 'full'")
    return rows.assign(run=rows["other_run"], against=with_arms(rows)["arm"])


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return contrasts with whether they are `shown`: by the exact test of right or wrong, else the interval.

    The ends of an interval over a hundred right or wrong answers lie on few possible values, 0 among them.
    """
    exact, known = rows["mcnemar_p"].notna(), rows["difference"].notna()
    ends = rows[["low", "high"]].notna().all(axis=1)
    holds = (rows["mcnemar_p"] < ALPHA).where(exact, shown(rows))
    return rows.assign(
        shown=holds.astype(float).where(exact | ends),
        mark=np.where(holds, " *", ""),
        no_interval=rows["reason"].mask(ends),
        kind=np.where(rows["task"] == GENERAL_TEXT, "windows", "items"),
        items=rows["items"].where(known),
        documents=rows["resampled"].where(known & (rows["resampled"] != rows["items"])),
        rule=f"McNemar's exact p below {ALPHA:g}" if exact.any() else "the interval excludes 0",
        starred=f"McNemar's exact p is below {ALPHA:g}" if exact.any() else "that excludes 0",
    )


def _from_base(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["against"] == BASE]


def _headline(performance: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of last checkpoints and the base, and a row each of general text."""
    tasks = [scores_of(performance, *score) for score in leading_metrics(performance)]
    base, _ = base_score(performance, GENERAL_TEXT, "nll") or (np.nan, np.nan)
    return pd.concat([*tasks, forgetting(performance), pd.DataFrame([{"run": BASE, "nll": base}])])


CHANGES = {
    "run": "{run}",
    "step": "{step:count}",
    "{score}": "{value:number 4}",
    "change from the base": "{change:signed}",
    "95 % BCa interval over items": "{low,high:interval}",
    "no interval": "{no_interval}",
    "McNemar's p": "{mcnemar_p:number 2}",
    "items gained / lost": "{gained:count} / {lost:count}",
    "shown": "{shown:verdict}",
    "{kind}": "{items:count}",
    "of documents": "{documents:count}",
}
KL = {"KL from the base (nats a token) ± standard error": "{kl_from_base,kl_stderr:with_error}"}
CAPTION = "{what} at the last checkpoint; the base model {origin}"
VERDICTS = Sentence(
    "{shown.sum:count} of {shown.size} runs are shown to differ from the base over these items: {rule}. Of "
    "runs that do not differ about one in twenty would seem to, somewhat more with few windows or items, "
    "and many at once: all runs share the base and the items.",
    lambda rows: _from_base(rows).dropna(subset=["shown"]),
)
BETWEEN = Listing(
    {"run": "{run}", "{against} minus this run": "{difference,low,high,reason:change}{mark}"},
    "Full fine-tuning against the other runs of its seed, {what}: difference and 95 % BCa interval over "
    "items; * where {starred}",
    lambda rows: rows[rows["against"] != BASE],
)
LEARNT = (Listing(CHANGES, CAPTION, _from_base), VERDICTS, BETWEEN)
FORGOTTEN = (Listing(CHANGES | KL, CAPTION, _from_base), VERDICTS, BETWEEN)
FINDINGS = (
    Finding("Learning", (PERFORMANCE,), _learnt, LEARNT, per=("task", "metric"), beside=(CONTRASTS,)),
    Finding("Forgetting", (PERFORMANCE,), _forgotten, FORGOTTEN, beside=(CONTRASTS,)),
)
HEADLINE = Headline(
    PERFORMANCE,
    _headline,
    {
        "{task}: {metric}": "{value,stderr:with_error}",
        "NLL (nats/token)": "{nll.max:number 4}",
        "NLL increase (nats/token)": "{nll_increase.max:number}",
        "KL from base (nats/token)": "{kl_from_base.max,kl_stderr.max:with_error}",
    },
    "NLL and KL are on general text, in nats a token.",
)
