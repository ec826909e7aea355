"""What figures and findings both read off the study's tables: last checkpoints, changes from the base.

Every function takes tables as docs/architecture.md describes them and returns a new one; none reads a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

BASE = "base"
GENERAL_TEXT = "general_text"
RUN_KEYS = ["run", "method", "rank", "seed"]


def arm_of(run: str, seed: int) -> str:
    """Return a run's arm: its folder name without the seed.

    >>> arm_of("lora-r8-seed42", 42)
    'lora-r8'
    """
    return run.removesuffix(f"-seed{seed}")


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Return the rows as named tuples."""
    return table.itertuples(index=False, name="Row")


def tuned_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of trained runs, without those of the base model."""
    return table[table["run"] != BASE]


def last_checkpoints(table: pd.DataFrame) -> pd.DataFrame:
    """Return each trained run's rows at its own last step."""
    rows = tuned_rows(table)
    return rows[rows["step"] == rows.groupby("run")["step"].transform("max")]


def leading_metrics(performance: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (task, metric) for the first metric of every task, in table order; general text is no task."""
    tasks = performance[performance["task"] != GENERAL_TEXT]
    first = tasks.drop_duplicates("task")
    return list(zip(first["task"], first["metric"], strict=True))


def scores_of(performance: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of one task: trained runs and base."""
    return performance[(performance["task"] == task) & (performance["metric"] == metric)]


def base_score(performance: pd.DataFrame, task: str, metric: str) -> tuple[float, float] | None:
    """Return the base model's (value, stderr) of a metric, or None where the base was not scored."""
    rows = scores_of(performance, task, metric)
    rows = rows[rows["run"] == BASE]
    return None if rows.empty else (float(rows["value"].iloc[0]), float(rows["stderr"].iloc[0]))


def forgetting(performance: pd.DataFrame) -> pd.DataFrame:
    """Return a row a checkpoint, on general text: `nll`, `nll_increase`, `kl_from_base`, `kl_stderr`.

    All in nats a token, the increase over the base; NaN where a measurement is missing; no rows where
    general text was not scored.
    """
    general = tuned_rows(performance[performance["task"] == GENERAL_TEXT])
    keys = [*RUN_KEYS, "step"]
    wide = general.pivot_table(index=keys, columns="metric", values="value").reset_index()
    wide = wide.reindex(columns=[*keys, "nll", "kl_from_base"])
    base = base_score(performance, GENERAL_TEXT, "nll")
    wide["nll_increase"] = wide["nll"] - (base[0] if base else np.nan)
    errors = general[general["metric"] == "kl_from_base"][["run", "step", "stderr"]]
    return wide.merge(errors.rename(columns={"stderr": "kl_stderr"}), on=["run", "step"], how="left")


def update_sizes(spectra: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return a row a checkpoint (and `by`): relative_update_norm = sqrt(sum ||dW||_F^2 / sum ||W0||_F^2)."""
    rows = tuned_rows(spectra)
    squares = rows.assign(update=rows["update_norm"] ** 2, base=rows["base_norm"] ** 2)
    sums = squares.groupby([*RUN_KEYS, "step", *by], as_index=False)[["update", "base"]].sum()
    sums["relative_update_norm"] = np.sqrt(sums["update"] / sums["base"])
    return sums.drop(columns=["update", "base"])


def intruder_totals(spectra: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return intruder counts summed, energy shares averaged, sigma1 ratios maximised over matrices."""
    return (
        tuned_rows(spectra)
        .groupby([*RUN_KEYS, "step", *by], as_index=False)
        .agg(
            intruders_left=("intruders_left", "sum"),
            intruders_right=("intruders_right", "sum"),
            intruder_energy_left=("intruder_energy_left", "mean"),
            intruder_energy_right=("intruder_energy_right", "mean"),
            sigma1_ratio=("sigma1_ratio", "max"),
            matrices=("module", "size"),
        )
    )


def rank_shares(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the trained rows with the update's entropy rank as a share of its null and of its bound.

    `null_share` = entropy rank / what Gaussian noise of that shape (or Gaussian BA of that rank) gives;
    `bound_share` = entropy rank / min(rows, columns, r), where r limits LoRA alone (`rank` > 0).
    """
    rows = tuned_rows(spectra).copy()
    bound = rows[["rows", "columns"]].min(axis=1)
    bound = bound.where(rows["rank"] == 0, np.minimum(bound, rows["rank"]))
    rows["null_share"] = rows["update_entropy_rank"] / rows["update_entropy_rank_null"]
    rows["bound_share"] = rows["update_entropy_rank"] / bound
    return rows


def gradient_statistics(gradients: pd.DataFrame, level: str) -> pd.DataFrame:
    """Return a row a (run, step, layer, group): `numel`, `l2_norm`, `rms`, `mean_abs`, `zero_fraction`.

    Rows of LoRA's factors A and B are combined (squares of norms add; means are weighted by `numel`),
    unless the table already holds their sum, marked by an empty factor.
    """
    keys = [*RUN_KEYS, "step", "layer", "group"]
    rows = gradients[gradients["level"] == level]
    whole = rows.assign(whole=rows["factor"] == "").groupby(keys)["whole"].transform("any")
    rows = rows[(rows["factor"] == "") | ~whole]
    weighted = rows.assign(
        square=rows["l2_norm"] ** 2,
        mean_abs=rows["mean_abs"] * rows["numel"],
        zero_fraction=rows["zero_fraction"] * rows["numel"],
    )
    sums = weighted.groupby(keys, as_index=False)[["numel", "square", "mean_abs", "zero_fraction"]].sum()
    sums["l2_norm"] = np.sqrt(sums["square"])
    sums["rms"] = np.sqrt(sums["square"] / sums["numel"])
    for column in ("mean_abs", "zero_fraction"):
        sums[column] = sums[column] / sums["numel"]
    return sums.drop(columns="square")
