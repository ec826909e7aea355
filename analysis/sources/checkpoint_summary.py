"""One row a checkpoint: what it learnt, what it forgot, and how far its weights and layers moved."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from rankdrift.analysis.sources.observations import (
    forgetting,
    intruder_totals,
    mean_states,
    tuned_rows,
    update_sizes,
)
from rankdrift.analysis.sources.subjects import IDENTITY

SOURCES = ("performance_metrics", "svd_analysis_results", "drift_metrics", "training_metrics")
"""The tables it is made of, each where it is there."""
MEASURES = {
    "task_loss": "validation loss on the trained tasks at this step, nats a target token",
    "nll_increase": "forgetting: NLL on general text over the base model's, nats a token",
    "kl_from_base": "E[KL(base || tuned)] on general text, nats a token",
    "prompt_kl": "the same on the trained tasks' prompts, mean over tasks",
    "retention_drop": "fall of the mean accuracy on retention tasks below the base model's",
    "relative_update_norm": "sqrt(sum ||dW||_F^2 / sum ||W0||_F^2) over all matrices",
    "sigma1_ratio": "largest sigma_1(dW) / sigma_1(W0) of the blocks' matrices",
    "intruders_left": "intruder dimensions among left vectors (the published count), all blocks' matrices",
    "intruders_right": "the same among right vectors",
    "intruder_energy_left": "energy share of the left intruders, mean over the blocks' matrices",
    "intruder_energy_right": "the same of the right ones",
    "drift": "1 - debiased CKA of mean-pooled states with the base model's, mean over layers that have it",
}
KEYS = list(IDENTITY)


def checkpoint_summaries(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return identity columns and the columns of MEASURES, a row a scored or analysed checkpoint of a run.

    NaN where a table that is needed is missing, or has nothing for this checkpoint. Means over layers and
    matrices sum a checkpoint up: they are no replicates, and nothing is inferred from their number.
    """
    checkpoints = [tuned_rows(tables[name])[KEYS] for name in SOURCES[:3] if name in tables]
    if not checkpoints:
        return pd.DataFrame(columns=[*KEYS, *MEASURES])
    summary = pd.concat(checkpoints).drop_duplicates().sort_values(["run", "step"], ignore_index=True)
    for measured in _measured(tables):
        columns = [name for name in measured.columns if name in MEASURES]
        summary = summary.merge(measured[["run", "step", *columns]], on=["run", "step"], how="left")
    return summary.reindex(columns=[*KEYS, *MEASURES]).astype(dict.fromkeys(MEASURES, "float64"))


def _measured(tables: Mapping[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """Return frames with ``run``, ``step`` and some of the MEASURES, one row a checkpoint each."""
    frames = []
    if "training_metrics" in tables:
        frames.append(_task_loss(tables["training_metrics"]))
    if "performance_metrics" in tables:
        frames.append(forgetting(tables["performance_metrics"]))
    if "svd_analysis_results" in tables:
        frames += [
            update_sizes(tables["svd_analysis_results"]),
            intruder_totals(tables["svd_analysis_results"]),
        ]
    if "drift_metrics" in tables:
        frames.append(_drift(tables["drift_metrics"]))
    return frames


def _task_loss(training: pd.DataFrame) -> pd.DataFrame:
    rows = training[training["split"] == "validation"].drop_duplicates(["run", "step"], keep="last")
    return rows[["run", "step", "loss"]].rename(columns={"loss": "task_loss"})


def _drift(drift: pd.DataFrame) -> pd.DataFrame:
    means = mean_states(tuned_rows(drift)).groupby(["run", "step"], as_index=False)["cka"].mean()
    return means.assign(drift=1 - means["cka"])
