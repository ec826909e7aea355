"""What happened to the hidden states."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rankdrift.analysis.observations import last_checkpoints, mean_states, rows_of
from rankdrift.analysis.report.grids import Grid, grid_of, number, percent, with_error
from rankdrift.analysis.report.study import Study

REPRESENTATIONS = {"mean": "means of the tokens", "last_token": "last tokens", "token": "single tokens"}
FEATURES = {"all": "all dimensions", "without_top": "without those of largest variance"}


def on_drift(study: Study) -> Iterator[str | Grid]:
    """Yield where each run's representations drifted most, and whether that depends on how they are taken."""
    drift = study.table("drift_metrics")
    if drift is None:
        return
    last = last_checkpoints(drift).dropna(subset=["cka"])
    means = mean_states(last)
    if len(means):
        inputs = ", ".join(str(count) for count in sorted(means["n"].unique()))
        yield grid_of(
            (_extremes(run, rows) for run, rows in study.by_run(means)),
            f"Hidden states of the tuned model and of the base, means over the tokens of {inputs} inputs",
        )
    if len(last) > len(means):
        yield grid_of(
            (_by_representation(run, rows) for run, rows in study.by_run(last)),
            "Lowest CKA over the layers ± standard error over inputs, by what is taken for a representation",
        )
    yield from _best_matches(study)


def _extremes(run: str, rows: pd.DataFrame) -> dict[str, str]:
    lowest = next(rows_of(rows.sort_values("cka")))
    moved = next(rows_of(rows.sort_values("relative_l2", ascending=False)))
    return {
        "run": run,
        "lowest CKA ± standard error": with_error(lowest.cka, lowest.cka_stderr, 4),
        "after layer": str(lowest.layer),
        "median CKA over layers": number(rows["cka"].median(), 4),
        "largest shift (of the norm)": percent(moved.relative_l2),
        "after layer ": str(moved.layer),
    }


def _by_representation(run: str, rows: pd.DataFrame) -> dict[str, str]:
    """Return the lowest CKA of every representation and set of features, each with its standard error."""
    lowest = rows.loc[rows.groupby(["features", "representation"], sort=False)["cka"].idxmin()]
    return {"run": run} | {
        f"{REPRESENTATIONS[row.representation]}, {FEATURES[row.features]}": with_error(
            row.cka, row.cka_stderr, 4
        )
        for row in rows_of(lowest)
    }


def _best_matches(study: Study) -> Iterator[str | Grid]:
    """Yield which layers of the tuned models are most like another layer of the base than their own."""
    similarity = study.table("layer_similarity")
    if similarity is None:
        return
    last = last_checkpoints(similarity).dropna(subset=["cka"])
    best = last.loc[last.groupby(["run", "tuned_layer"])["cka"].idxmax()]
    moved = best[best["tuned_layer"] != best["base_layer"]]
    kept = best["run"].nunique() - moved["run"].nunique()
    if kept:
        runs = best["run"].nunique()
        yield f"In {kept} of {runs} runs every layer is, by CKA, most like the same layer of the base."
    if len(moved):
        yield grid_of(
            ({"run": run, "tuned layer (base layer)": _pairs(rows)} for run, rows in study.by_run(moved)),
            "Layers that are, by CKA, more like another layer of the base than like their own",
        )


def _pairs(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.tuned_layer} ({row.base_layer})" for row in rows_of(rows))
