"""What was learnt and forgotten: changes of scores against the base and between runs.

Intervals and tests over items are those of ``item_contrasts``; values alone are of ``performance_metrics``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankdrift.analysis.findings import ALPHA, Finding, Headline, Listing, Sentence, scored, shown
from rankdrift.analysis.formats import number, score_name, with_error
from rankdrift.analysis.sources.observations import (
    BASE,
    GENERAL_TEXT,
    MEAN_ACCURACY,
    RETENTION,
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    prompt_texts,
    role_leads,
    scores_of,
    with_arms,
)

PERFORMANCE, CONTRASTS, BASELINES = "performance_metrics", "item_contrasts", "baselines"
STATED = ["low", "high", "gained", "lost", "mcnemar_p", "items", "resampled", "difference", "reason"]
"""What a contrast says of two models, beside which they are."""


def _learnt(
    performance: pd.DataFrame, contrasts: pd.DataFrame | None, baselines: pd.DataFrame | None
) -> pd.DataFrame:
    """Return what each run gained on each task over the base, and full fine-tuning over the other runs."""
    scores = [scores_of(performance, *score) for score in leading_metrics(performance)]
    found = [
        _over_majority(_beside(last_checkpoints(rows), performance, contrasts), baselines) for rows in scores
    ]
    return pd.concat(found) if found else performance.head(0)


def _over_majority(rows: pd.DataFrame, baselines: pd.DataFrame | None) -> pd.DataFrame:
    """Return rows of one score with what is had `without` a model, and how far they are `over` it."""
    if rows.empty:
        return rows
    task, metric = rows["task"].iloc[0], rows["metric"].iloc[0]
    known = None if baselines is None else scores_of(baselines, task, metric).dropna(subset=["value"])
    if known is None or known.empty:
        return rows.assign(without="", majority=np.nan, over=np.nan)
    values = dict(zip(known["rule"], known["value"], strict=True))
    told = ", ".join(f"{RULES.get(rule, rule)} {number(value)}" for rule, value in values.items())
    majority = values.get("majority", np.nan)
    return rows.assign(without=f". Without a model: {told}", majority=majority, over=rows["value"] - majority)


def _not_above(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs, and the base, that are not above the majority class by two standard errors."""
    rows = _from_base(rows).dropna(subset=["majority"])
    if rows.empty or not bool(rows["higher_is_better"].iloc[0]):
        return rows.head(0)
    base = rows.head(1).assign(run=BASE, value=rows["base"], stderr=rows["base_stderr"])
    both = pd.concat([base, rows]).dropna(subset=["value"])
    return both[~(both["value"] - 2 * both["stderr"].fillna(0) > both["majority"])]


def _forgotten(performance: pd.DataFrame, contrasts: pd.DataFrame | None) -> pd.DataFrame:
    """Return how much worse each run predicts general text than the base, and how far it moved."""
    last = last_checkpoints(forgetting(performance)).assign(task=GENERAL_TEXT, metric="nll")
    last = last.assign(value=last["nll"]).dropna(subset=["value"])
    return _beside(last, performance, contrasts)


def _retained(performance: pd.DataFrame, contrasts: pd.DataFrame | None) -> pd.DataFrame:
    """Return every run's score on every retention task, and on their mean, with its change from the base."""
    scores = [scores_of(performance, *score) for score in role_leads(performance, "retention")]
    found = []
    for rows in scores:
        changes = _beside(last_checkpoints(rows), performance, contrasts)
        found.append(pd.concat([rows[rows["run"] == BASE], changes[changes["against"] == BASE]]))
    return pd.concat(found) if found else performance.head(0)


def _against_the_base(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs' rows, where one has an interval or a change, named as the listing names them."""
    rows = rows[rows["against"] == BASE]
    difference = rows["difference"].fillna(rows["change"])
    marked, judged = (rows["mark"] != "").sum(), rows["shown"].count()
    return rows.assign(difference=difference, marked=marked, judged=judged)


def _prompts(performance: pd.DataFrame) -> pd.DataFrame:
    """Return every run's KL from the base on the prompts of its tasks, and the mean over the tasks."""
    texts = last_checkpoints(prompt_texts(performance))
    texts = texts[texts["metric"] == "kl_from_base"][["run", "step", "task", "value", "stderr"]]
    means = last_checkpoints(forgetting(performance)).dropna(subset=["prompt_kl"])
    means = means.assign(task="mean over tasks", value=means["prompt_kl"], stderr=means["prompt_kl_stderr"])
    several = texts["task"].nunique() > 1
    return pd.concat([texts, means[texts.columns]]) if several else texts


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
    """Return the scores of last checkpoints and the base, and a row each of what was forgotten."""
    wanted = [*leading_metrics(performance), (RETENTION, MEAN_ACCURACY)]
    tasks = [scores_of(performance, *score) for score in wanted]
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
RULES = {"majority": "the most frequent answer gives", "random": "answers at random"}
MAJORITY = {"over the most frequent answer": "{over:signed}"}
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
NOT_ABOVE = Sentence(
    "Not above what the most frequent answer gives, {majority:number}, by two standard errors: "
    "{run.unique:listed}.",
    _not_above,
)
RETAINED = Listing(
    {"run": "{run}", "{task}: {metric}": "{value,stderr:with_error}"},
    "Tasks that were scored and not trained on, at the last checkpoints; the last is the mean of accuracy on "
    "HellaSwag, ARC-challenge and WinoGrande where all three were scored (arXiv 2405.09673)",
)
LOST = Listing(
    {"run": "{run}", "{task}: {metric}": "{difference,low,high,reason:change}{mark}"},
    "Change from the base: difference and paired 95 % BCa interval over items, or over documents where items "
    "share them; * where McNemar's exact p is below 0.05 or, without one, the interval excludes 0",
    _against_the_base,
)
MARKED = Sentence(
    "{marked.max:count} of {judged.max:count} changes with an interval are marked; of changes that are none "
    "about one in twenty would be.",
    lambda rows: _against_the_base(rows).query("judged > 0"),
)
PROMPTS = Listing(
    {"run": "{run}", "{task}": "{value,stderr:with_error}"},
    "KL from the base, E[KL(base || tuned)], nats a token, on the prompts of the tasks trained on, ± "
    "standard error: how far predictions moved on the inputs of training, which has been found to go with "
    "forgetting (arXiv 2509.04259)",
)
LEARNT = (Listing(CHANGES | MAJORITY, CAPTION + "{without}", _from_base), NOT_ABOVE, VERDICTS, BETWEEN)
FORGOTTEN = (Listing(CHANGES | KL, CAPTION, _from_base), VERDICTS, BETWEEN)
FINDINGS = (
    Finding("Learning", (PERFORMANCE,), _learnt, LEARNT, ("task", "metric"), (CONTRASTS, BASELINES)),
    Finding("Forgetting", (PERFORMANCE,), _forgotten, FORGOTTEN, beside=(CONTRASTS,)),
    Finding("Retention tasks", (PERFORMANCE,), _retained, (RETAINED, LOST, MARKED), beside=(CONTRASTS,)),
    Finding("Predictions on the tasks' prompts", (PERFORMANCE,), _prompts, (PROMPTS,)),
)
HEADLINE = Headline(
    PERFORMANCE,
    _headline,
    {
        "{task}: {metric}": "{value,stderr:with_error}",
        "NLL (nats/token)": "{nll.max:number 4}",
        "NLL increase (nats/token)": "{nll_increase.max:number}",
        "KL from base (nats/token)": "{kl_from_base.max,kl_stderr.max:with_error}",
        "KL on prompts (nats/token)": "{prompt_kl.max,prompt_kl_stderr.max:with_error}",
    },
    "NLL and KL are on general text, in nats a token, KL on prompts on those of the tasks trained on.",
)
