"""What happened to the weights: update, rank, intruders, subspaces, task vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.report.grids import MISSING, Grid, count, grid_of, number, percent
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.observations import (
    intruder_shares,
    intruder_totals,
    last_checkpoints,
    last_pairs,
    nearest_count,
    of_blocks,
    of_changed,
    rank_shares,
    rows_of,
    update_sizes,
)


def on_update_size(study: Study) -> Iterator[str | Grid]:
    """Yield the size of each run's update relative to the base, and how much of it bf16 would lose."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    last = last_checkpoints(spectra)
    sizes = update_sizes(last).set_index("run")["relative_update_norm"]
    yield grid_of(
        (_size(run, rows, sizes[run]) for run, rows in study.by_run(last)),
        "Norm of the update over that of the base's weights, and matrices whose update is smaller than the "
        "rounding of the weight to bf16",
    )


def _size(run: str, rows: pd.DataFrame, size: float) -> dict[str, str]:
    largest = next(rows_of(rows.sort_values("relative_update_norm", ascending=False)))
    changed = rows[rows["update_norm"] > 0]
    return {
        "run": run,
        "of all weights": percent(size),
        "largest of a matrix": percent(largest.relative_update_norm),
        "which": _place(largest),
        "matrices": str(len(rows)),
        "changed": str(len(changed)),
        "below bf16's rounding": str(int((changed["bf16_floor_ratio"] < 1).sum())),
    }


def _place(row: Any) -> str:
    """Return where a matrix is; embeddings and heads have no layer."""
    return f"{row.module} of layer {row.layer}" if row.layer >= 0 else str(row.module)


def on_rank(study: Study) -> Iterator[str | Grid]:
    """Yield the entropy rank of each run's update against its null."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    last = rank_shares(last_checkpoints(spectra))
    if last.empty:
        return
    yield grid_of(
        (_rank(run, rows) for run, rows in study.by_run(last)),
        "Entropy rank of the update, medians over the matrices that changed. Noise is Gaussian, of the "
        "matrix's shape; for LoRA a product BA of Gaussian factors of that r",
    )
    if last["bounded"].any() and not last["bounded"].all():
        yield (
            "LoRA's ranks are bounded by r: the gap to full fine-tuning is there by construction, and what "
            "compares is the share of noise's."
        )


def _rank(run: str, rows: pd.DataFrame) -> dict[str, str]:
    middle = rows[["update_entropy_rank", "update_entropy_rank_null", "null_share"]].median()
    bound = int(rows["rank"].iloc[0]) if rows["bounded"].all() else 0
    return {
        "run": run,
        "entropy rank": number(middle["update_entropy_rank"]),
        "noise's": number(middle["update_entropy_rank_null"]),
        "share of noise's": percent(middle["null_share"]),
        "bounded by r": str(bound) if bound else MISSING,
    }


def on_intruders(study: Study) -> Iterator[str | Grid]:
    """Yield counts, energy and leading singular value of each run's intruder dimensions."""
    spectra = study.table("svd_analysis_results")
    if spectra is None:
        return
    totals = intruder_totals(last_checkpoints(spectra))
    if totals.empty:
        return
    yield grid_of(
        (_intruders(row) for _, rows in study.by_run(totals) for row in rows_of(rows)),
        "Intruder dimensions over all matrices of the blocks, left / right",
    )
    yield from _over_grid(study)
    yield "An intruder is spread over many base vectors; whether it causes forgetting is contested."


def _intruders(row: Any) -> dict[str, str]:
    return {
        "run": row.run,
        "intruders": f"{count(row.intruders_left)} / {count(row.intruders_right)}",
        "matrices": str(row.matrices),
        "share of the leading energy": " / ".join(
            map(percent, (row.intruder_energy_left, row.intruder_energy_right))
        ),
        "largest singular value of an update over the base's": number(row.sigma1_ratio),
    }


def _over_grid(study: Study) -> Iterator[Grid]:
    """Yield how the share of intruders depends on the threshold, beside random directions."""
    grid = study.table("intruder_dimensions")
    if grid is None:
        return
    shares = intruder_shares(last_checkpoints(grid))
    if shares.empty:
        return
    k = nearest_count(shares["k"])
    shares = shares[shares["k"] == k]
    by_arm = {arm: shares[shares["arm"] == arm] for arm in study.arms}
    rows = [{"arm": arm} | _by_threshold(found, "share") for arm, found in by_arm.items() if len(found)]
    random = {"arm": "random directions, the most of any arm"}
    highest = shares.groupby("threshold", as_index=False).agg(share_random=("share_random", "max"))
    yield grid_of(
        [*rows, random | _by_threshold(highest, "share_random")],
        f"Share of the {k} leading vectors of both sides that are intruders, by the threshold below which "
        "the largest cosine with a base vector must lie",
    )


def _by_threshold(shares: pd.DataFrame, column: str) -> dict[str, str]:
    ordered = shares.sort_values("threshold")
    return {f"{row.threshold:g}": percent(getattr(row, column)) for row in rows_of(ordered)}


def on_subspaces(study: Study) -> Iterator[str | Grid]:
    """Yield how far the leading singular vectors turned, and for how many matrices that is well defined."""
    drift = study.table("subspace_drift")
    if drift is None:
        return
    last = of_blocks(last_checkpoints(drift)).dropna(subset=["vector_drift"])
    last = of_changed(last, study.table("svd_analysis_results"))
    if last.empty:
        return
    k = nearest_count(last["k"])
    last = last[last["k"] == k]
    yield grid_of(
        (_turned(run, rows) for run, rows in study.by_run(last)),
        f"How far the span of the {k} leading singular vectors turned, means over the matrices that changed: "
        "0 not at all, 1 into an orthogonal one",
    )
    naive = last.groupby("run")["naive_drift"].mean()
    yield (
        f"The naive distance of the same vectors would say {number(naive.min())} to {number(naive.max())} in "
        "the mean over a run's matrices: it depends on signs, which are arbitrary. Where the gap "
        "is smaller than twice the update, neighbouring vectors may have changed places without meaning."
    )


def _turned(run: str, rows: pd.DataFrame) -> dict[str, str]:
    sides = {str(side): number(mean) for side, mean in rows.groupby("side")["vector_drift"].mean().items()}
    return {
        "run": run,
        **sides,
        "unrelated spans": number(np.sqrt(1 - rows["overlap_random"]).mean()),
        "matrices with a gap above twice the update": percent(rows["reliable"].mean()),
    }


def on_task_vectors(study: Study) -> Iterator[str | Grid]:
    """Yield how alike the updates of any two runs are: arms with one seed, and with different ones."""
    vectors = study.table("task_vectors")
    if vectors is None:
        return
    pairs = last_pairs(vectors).dropna(subset=["cosine"])
    if pairs.empty:
        return
    arms = [arm for arm in study.arms if arm in {*pairs["arm"], *pairs["other_arm"]}]
    where = (
        "means over pairs of runs; above the diagonal runs of one seed, on it and below of different seeds"
    )
    yield _square(pairs, arms, "cosine", number, f"Cosine of task vectors, {where}")
    conflicts = pairs.dropna(subset=["sign_conflict"])
    if len(conflicts):
        caption = "Entries large in both task vectors that differ in sign"
        yield _square(conflicts, arms, "sign_conflict", percent, f"{caption}, {where}")
    yield (
        f"Unrelated directions have a cosine within ±{number(1.96 * pairs['cosine_null'].max(), 2)}, and "
        "half of their large entries differ in sign. Runs of one seed share the order of the data and, if "
        "both are LoRA of one r, the start of their factors."
    )


def _square(pairs: pd.DataFrame, arms: list[str], column: str, text: Any, caption: str) -> Grid:
    """Return arms against arms: of one seed above the diagonal, of different seeds elsewhere."""
    same = pairs["seed"] == pairs["other_seed"]
    rows = []
    for i, arm in enumerate(arms):
        cells = [
            text(_between(pairs[same if j > i else ~same], arm, other)[column].mean())
            for j, other in enumerate(arms)
        ]
        rows.append((arm, *cells))
    return Grid(("", *arms), tuple(rows), caption)


def _between(pairs: pd.DataFrame, arm: str, other: str) -> pd.DataFrame:
    """Return the pairs of two arms, whichever is named first."""
    forth = (pairs["arm"] == arm) & (pairs["other_arm"] == other)
    back = (pairs["arm"] == other) & (pairs["other_arm"] == arm)
    return pairs[forth | back]
