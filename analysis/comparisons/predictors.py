"""What predicts forgetting: how the NLL on general text goes with each quantity said to drive it.

Candidates are KL from the base on the trained tasks' prompts (arXiv 2509.04259 finds it to go with
forgetting), on the same text, which is no independent quantity, the size of the update, its leading value
against the base's (2607.23711), intruder dimensions (2410.21228) and drift of the layers. Along one run
all of them tend to grow with the step, so that any two go together over its checkpoints: rows of the last
checkpoints alone are free of that. Association is not cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import Finding, Listing, Sentence, among
from rankdrift.analysis.mathematics.statistics.association import Association, associate
from rankdrift.analysis.mathematics.statistics.bootstrap import MIN_ARMS, BootstrapInterval
from rankdrift.analysis.sources.checkpoint_summary import MEASURES, SOURCES, checkpoint_summaries
from rankdrift.analysis.sources.observations import last_checkpoints, with_arms
from rankdrift.analysis.sources.study_tables import read_study_tables
from rankdrift.analysis.sources.subjects import Subject

TABLE = "forgetting_predictors"
PREDICTORS = (
    "prompt_kl",
    "kl_from_base",
    "relative_update_norm",
    "sigma1_ratio",
    "intruders_left",
    "intruders_right",
    "intruder_energy_left",
    "intruder_energy_right",
    "drift",
)
RESAMPLED = f"95 % interval, resampled arms; NaN for fewer than {MIN_ARMS} arms"
COLUMNS = {
    "scope": "pooled (all runs), or the method whose runs are taken",
    "points": "all checkpoints, or the last of every run",
    "predictor": "a column of learning_forgetting",
    "spearman": "rank correlation with nll_increase over the checkpoints",
    "spearman_low": f"lower end of its {RESAMPLED}",
    "spearman_high": "upper end",
    "pearson_log": "Pearson's correlation of the logarithms, where both are positive",
    "pearson_log_low": f"lower end of its {RESAMPLED}",
    "pearson_log_high": "upper end",
    "r2_log": "pearson_log squared: the share of the variance of log forgetting a power law explains",
    "runs": "runs",
    "arms": "arms: clusters that are drawn whole, since seeds and checkpoints of one arm are much alike",
    "checkpoints": "checkpoints",
    "log_checkpoints": "checkpoints where both are positive",
    "reason": "why values or intervals are NaN; else empty",
}


def compute_all(subjects: Sequence[Subject], params: Params, tables: Path) -> Tables:
    """Return a row a scope, choice of checkpoints and predictor; none where forgetting was not measured."""
    summary = checkpoint_summaries(read_study_tables(tables, SOURCES)).dropna(subset=["nll_increase"])
    rows = [
        {"scope": scope, "points": points, "predictor": predictor, **_values(found, predictor)}
        for scope, points, found in _scopes(summary)
        for predictor in PREDICTORS
        if found[predictor].notna().any()
    ]
    return {TABLE: pd.DataFrame(rows, columns=list(COLUMNS))} if rows else {}


def _scopes(summary: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (scope, points, checkpoints); a single method's checkpoints are not listed twice."""
    methods = sorted(summary["method"].unique())
    for scope in ["pooled", *(methods if len(methods) > 1 else [])]:
        rows = summary if scope == "pooled" else summary[summary["method"] == scope]
        if len(rows):
            yield scope, "all", rows
            yield scope, "last", last_checkpoints(rows)


def _association(rows: pd.DataFrame, predictor: str) -> Association:
    assert set(PREDICTORS) <= set(MEASURES)
    return associate(
        rows[predictor].to_numpy(), rows["nll_increase"].to_numpy(), with_arms(rows)["arm"].to_numpy()
    )


def _values(rows: pd.DataFrame, predictor: str) -> dict[str, Any]:
    found = _association(rows, predictor)
    return {
        **_interval("spearman", found.spearman),
        **_interval("pearson_log", found.pearson_log),
        "r2_log": found.pearson_log.value**2,
        "runs": rows.dropna(subset=[predictor])["run"].nunique(),
        "arms": found.clusters,
        "checkpoints": found.checkpoints,
        "log_checkpoints": found.log_checkpoints,
        "reason": found.reason,
    }


def _interval(name: str, found: BootstrapInterval) -> dict[str, float]:
    low, high = (np.nan if end is None else end for end in (found.low, found.high))
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


NAMES = {
    "prompt_kl": "KL from the base, the trained tasks' prompts",
    "kl_from_base": "KL from the base, same text",
    "relative_update_norm": "relative size of the update",
    "sigma1_ratio": "largest ratio of leading singular values",
    "intruders_left": "intruders, left (the published count)",
    "intruders_right": "intruders, right",
    "intruder_energy_left": "energy share of left intruders",
    "intruder_energy_right": "energy share of right intruders",
    "drift": "1 - CKA, mean over layers",
}


def _correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return the correlations with how many of a predictor's are known; none if none of any is."""
    rows = table.assign(
        name=table["predictor"].replace(NAMES),
        known=table.groupby("predictor")["spearman"].transform("count"),
        which=np.where(table["points"] == "all", "all", "last"),
        kind=(table["scope"] + " ").replace("pooled ", ""),
        reason=table["reason"].str.split(";").str[0],
    )
    return among(rows, rows["known"].any())


CORRELATIONS = Listing(
    {
        "over": "{which} {checkpoints.max} checkpoints: {runs.max} {kind}runs of {arms.max} arms",
        "{name}": "{spearman,spearman_low,spearman_high:estimate 2}",
    },
    "Rank correlation (Spearman) with the NLL increase, 95 % intervals over resampled arms",
    lambda rows: rows.dropna(subset=["spearman"]),
    by=("scope", "points"),
)
UNDEFINED = Sentence(
    "No correlation with {name}: {reason}.", lambda rows: rows[rows["known"] == 0], per=("name",)
)
CAUTION = Sentence(
    "Where no interval is given nothing is shown. KL on the text whose NLL is forgetting is no independent "
    "predictor; KL on the tasks' prompts is of other text. Along one run all of these tend to move with the "
    "step: a correlation over its checkpoints is no evidence, and over runs it is no cause."
)
FINDING = Finding("What goes with forgetting", (TABLE,), _correlations, (CORRELATIONS, UNDEFINED, CAUTION))
ANALYSIS = Analysis(
    name="predictors",
    version=4,
    columns={TABLE: COLUMNS},
    per="study",
    compute_all=compute_all,
    reads=SOURCES,
    findings=(FINDING,),
)
