"""Sentences on what happened to the weights: update, rank, intruders, subspaces, task vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.observations import (
    intruder_shares,
    intruder_totals,
    last_checkpoints,
    last_pairs,
    nearest_count,
    of_blocks,
    rank_shares,
    rows_of,
    update_sizes,
)
from rankdrift.analysis.report.grids import number, percent
from rankdrift.analysis.report.study import Study


def on_update_size(study: Study) -> Iterator[str]:
    """Yield the size of each run's update relative to the base, and how much of it bf16 would lose."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    last = last_checkpoints(spectra)
    sizes = update_sizes(last).set_index("run")["relative_update_norm"]
    for run, rows in last.groupby("run"):
        largest = next(rows_of(rows.sort_values("relative_update_norm", ascending=False)))
        rounded = int(((rows["bf16_floor_ratio"] < 1) & (rows["update_norm"] > 0)).sum())
        yield (
            f"{run}: the update is {percent(sizes[run])} of the base weights' norm over all {len(rows)} "
            f"matrices, largest in {_place(largest)} "
            f"({percent(largest.relative_update_norm)}); in {rounded or 'none'} of them it is smaller than "
            "the rounding of the weight to bf16."
        )


def _place(row: Any) -> str:
    """Return where a matrix is; embeddings and heads have no layer."""
    return f"{row.module} of layer {row.layer}" if row.layer >= 0 else str(row.module)


def on_rank(study: Study) -> Iterator[str]:
    """Yield the entropy rank of each run's update against its null."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    last = rank_shares(last_checkpoints(spectra))
    for run, rows in last.groupby("run"):
        middle = rows[["update_entropy_rank", "update_entropy_rank_null", "null_share"]].median()
        bound = int(rows["rank"].iloc[0])
        noise = f"Gaussian BA of rank {bound}" if bound else "noise of that shape"
        yield (
            f"{run}: its update has a median entropy rank of {number(middle['update_entropy_rank'])}, "
            f"{percent(middle['null_share'])} of what {noise} gives "
            f"({number(middle['update_entropy_rank_null'])})"
            + (f"; it is bounded by r = {bound} by construction." if bound else ".")
        )
    if last["rank"].nunique() > 1:
        yield (
            "The gap in rank between LoRA and full fine-tuning is there by construction; what compares is "
            "the share of noise."
        )


def on_intruders(study: Study) -> Iterator[str]:
    """Yield counts, energy and leading singular value of each run's intruder dimensions."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    rows = intruder_totals(last_checkpoints(spectra))
    for row in rows_of(rows):
        yield (
            f"{row.run}: {row.intruders_left} left and {row.intruders_right} right intruders in "
            f"{row.matrices} matrices, holding on average {percent(row.intruder_energy_left)} and "
            f"{percent(row.intruder_energy_right)} of the leading energy; the update's largest singular "
            f"value is at most {number(row.sigma1_ratio)} times the base's."
        )
    yield from _over_grid(study)
    if not rows.empty:
        yield "An intruder is spread over many base vectors; whether it causes forgetting is contested."


def _over_grid(study: Study) -> Iterator[str]:
    """Yield how the share of intruders depends on the threshold, beside random directions."""
    grid = study.table("intruder_dimensions")
    if grid is None:
        return
    shares = intruder_shares(last_checkpoints(grid))
    if shares.empty:
        return
    k = nearest_count(shares["k"])
    for arm, rows in shares[shares["k"] == k].groupby("arm", sort=False):
        by_threshold = list(rows_of(rows.sort_values("threshold")))
        first, last = by_threshold[0], by_threshold[-1]
        yield (
            f"{arm}: of the {k} leading vectors of both sides, {percent(first.share)} are intruders at the "
            f"threshold {first.threshold:g} and {percent(last.share)} at {last.threshold:g}; of random "
            f"directions {percent(first.share_random)} and {percent(last.share_random)} would be."
        )


def on_subspaces(study: Study) -> Iterator[str]:
    """Yield how far the leading singular vectors turned, and for how many matrices that is well defined."""
    drift = study.table("subspace_drift")
    if drift is None:
        return
    last = of_blocks(last_checkpoints(drift)).dropna(subset=["vector_drift"])
    k = nearest_count(last["k"]) if len(last) else 0
    last = last[last["k"] == k]
    for run, rows in last.groupby("run"):
        means = rows.groupby("side")["vector_drift"].mean()
        sides = ", ".join(f"{number(mean)} ({side})" for side, mean in means.items())
        yield (
            f"{run}: the span of the {k} leading singular vectors turned by {sides} in the mean over "
            f"matrices, unrelated ones would have {number(np.sqrt(1 - rows['overlap_random']).mean())}; the "
            f"gap below these values exceeds twice the update in {percent(rows['reliable'].mean())} of them."
        )
    if len(last):
        yield (
            f"The naive distance of the same vectors would say {number(last['naive_drift'].min())} to "
            f"{number(last['naive_drift'].max())}: it depends on signs, which are arbitrary. Where the gap "
            "is smaller than twice the update, neighbouring vectors may have changed places without meaning."
        )


def on_task_vectors(study: Study) -> Iterator[str]:
    """Yield how alike the updates of two arms are, and of two seeds of one arm."""
    vectors = study.table("task_vectors")
    if vectors is None:
        return
    pairs = last_pairs(vectors).dropna(subset=["cosine"])
    names = [tuple(sorted(pair)) for pair in zip(pairs["arm"], pairs["other_arm"], strict=True)]
    for (arm, other), rows in pairs.groupby(pd.Series(names, pairs.index), sort=False):
        whose = f"seeds of {arm}" if arm == other else f"{arm} and {other}"
        conflict = rows["sign_conflict"].mean()
        differ = (
            f"; of the entries that are large in both, {percent(conflict)} differ in sign (unrelated: 50 %)"
        )
        signs = "" if np.isnan(conflict) else differ
        yield (
            f"{whose}: task vectors have a cosine of {_spread(rows['cosine'])}, unrelated directions one "
            f"within ±{number(1.96 * rows['cosine_null'].mean(), 2)}{signs}."
        )


def _spread(values: pd.Series) -> str:
    """Return a value, or the mean and the range of several: pairs that share runs give no interval."""
    mean = number(values.mean())
    several = f" (mean of {len(values)} pairs of runs, {number(values.min())} to {number(values.max())})"
    return mean if len(values) == 1 else mean + several
