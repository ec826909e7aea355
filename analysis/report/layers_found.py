"""Sentences on what happened to the hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankdrift.analysis.observations import last_checkpoints, mean_states, rows_of
from rankdrift.analysis.report.grids import number, percent
from rankdrift.analysis.report.study import Study

REPRESENTATIONS = {"mean": "means of the tokens", "last_token": "last tokens", "token": "single tokens"}
FEATURES = {"all": "of all dimensions", "without_top": "without those of largest variance"}


def on_drift(study: Study) -> Iterator[str]:
    """Yield where each run's representations drifted most, and whether that depends on how they are taken."""
    drift = study.table("drift_metrics")
    if drift is None:
        return
    for run, rows in last_checkpoints(drift).dropna(subset=["cka"]).groupby("run"):
        means = mean_states(rows)
        if len(means):
            yield _headline(str(run), means)
        if len(rows) > len(means):
            yield _by_representation(str(run), rows)
    yield from _best_matches(study)


def _headline(run: str, rows: pd.DataFrame) -> str:
    lowest = next(rows_of(rows.sort_values("cka")))
    moved = next(rows_of(rows.sort_values("relative_l2", ascending=False)))
    return (
        f"{run}: CKA with the base is lowest after layer {lowest.layer}, {number(lowest.cka, 4)} "
        f"(standard error {number(lowest.cka_stderr, 2)} over {lowest.n} inputs), and "
        f"{number(rows['cka'].median(), 4)} in the median layer; hidden states move most after layer "
        f"{moved.layer}, by {percent(moved.relative_l2)} of their norm."
    )


def _by_representation(run: str, rows: pd.DataFrame) -> str:
    """Return the lowest CKA of every representation and set of features, each with its standard error."""
    lowest = rows.loc[rows.groupby(["features", "representation"], sort=False)["cka"].idxmin()]
    found = [
        f"{FEATURES[str(features)]} " + ", ".join(map(_lowest, rows_of(of_features)))
        for features, of_features in lowest.groupby("features", sort=False)
    ]
    return f"{run}: lowest CKA ± its standard error over inputs, {'; '.join(found)}."


def _lowest(row: Any) -> str:
    return f"{number(row.cka, 4)} ± {number(row.cka_stderr, 2)} ({REPRESENTATIONS[row.representation]})"


def _best_matches(study: Study) -> Iterator[str]:
    """Yield which layers of the tuned models are most like another layer of the base than their own."""
    similarity = study.table("layer_similarity")
    if similarity is None:
        return
    last = last_checkpoints(similarity).dropna(subset=["cka"])
    best = last.loc[last.groupby(["run", "tuned_layer"])["cka"].idxmax()]
    moved = best[best["tuned_layer"] != best["base_layer"]]
    for run, rows in moved.groupby("run"):
        found = ", ".join(f"{row.tuned_layer} (like {row.base_layer})" for row in rows_of(rows))
        yield f"{run}: by CKA, these layers are more like another layer of the base: {found}."
    kept = sorted(set(best["run"]) - set(moved["run"]))
    if kept:
        yield f"{', '.join(kept)}: by CKA, every layer is most like the same layer of the base."
