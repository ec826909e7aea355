"""What happened to the hidden states."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rankdrift.analysis.report.grids import Grid, grid_of, number, percent, with_error
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.observations import fixed_states, last_checkpoints, mean_states, rows_of

REPRESENTATIONS = {"mean": "means of the tokens", "last_token": "last tokens", "token": "single tokens"}
FEATURES = {"all": "all dimensions", "without_top": "without those of largest variance"}


def on_drift(study: Study) -> Iterator[str | Grid]:
    """Yield where each run's representations drifted most, and whether that depends on how they are taken."""
    drift = study.table("drift_metrics")
    if drift is not None:
        yield from _against_base(study, last_checkpoints(drift).dropna(subset=["cka"]))
    yield from _best_matches(study)


def _against_base(study: Study, last: pd.DataFrame) -> Iterator[Grid]:
    """Yield how far each run's states lie from the base's, layer by layer."""
    means = mean_states(last)
    if len(means):
        inputs = ", ".join(str(count) for count in sorted(means["n"].unique()))
        yield grid_of(
            (_extremes(run, rows) for run, rows in study.by_run(means)),
            f"Hidden states of the tuned model and of the base, means over the tokens of {inputs} inputs; "
            "state 0 are the embeddings, state n is what block n - 1 gives",
        )
    if len(last) > len(means):
        yield grid_of(
            (_by_representation(run, rows) for run, rows in study.by_run(last)),
            "CKA of the last state ± standard error over inputs, by what is taken for a representation",
        )


def _extremes(run: str, rows: pd.DataFrame) -> dict[str, str]:
    moved = next(rows_of(rows.sort_values("relative_l2", ascending=False)))
    return {
        "run": run,
        **{
            f"CKA ± standard error, {name} state": f"{with_error(row.cka, row.cka_stderr, 4)} ({row.layer})"
            for name, row in fixed_states(rows).items()
        },
        "median CKA over states": number(rows["cka"].median(), 4),
        "largest shift (of the norm)": percent(moved.relative_l2),
        "shift at state": str(moved.layer),
    }


def _by_representation(run: str, rows: pd.DataFrame) -> dict[str, str]:
    """Return the last state's CKA of every representation and set of features, with its standard error."""
    return {"run": run} | {
        f"{REPRESENTATIONS[row.representation]}, {FEATURES[row.features]}": (
            f"{with_error(row.cka, row.cka_stderr, 4)}"
        )
        for row in rows_of(rows[rows["layer"] == rows["layer"].max()])
    }


def _best_matches(study: Study) -> Iterator[str | Grid]:
    """Yield which states of the tuned models are most like another state of the base than their own."""
    similarity = study.table("layer_similarity")
    if similarity is None:
        return
    best = _with_own(study, last_checkpoints(similarity).dropna(subset=["cka"]))
    runs = best["run"].nunique()
    clear = best[best["gap"] > 1.96 * best["cka_stderr"]]
    nominal = best[best["tuned_layer"] != best["base_layer"]]
    if runs:
        yield (
            f"In {runs - nominal['run'].nunique()} of {runs} runs every state is, by CKA, most like the same "
            f"state of the base. Of {len(nominal)} that are more like another one, {len(clear)} are so by "
            "more than 1.96 standard errors of their CKA with their own."
        )
    if len(clear):
        yield grid_of(
            ({"run": run, "tuned state (base state)": _pairs(rows)} for run, rows in study.by_run(clear)),
            "States more like another state of the base than like their own, by more than that error",
        )


def _with_own(study: Study, similarity: pd.DataFrame) -> pd.DataFrame:
    """Return each tuned state's best match; its `gap` to the match with its own state, and the error of that.

    The error is that of mean-pooled states in `drift_metrics`; NaN without it, so that nothing is clear.
    """
    best = similarity.loc[similarity.groupby(["run", "tuned_layer"])["cka"].idxmax()]
    own = similarity[similarity["tuned_layer"] == similarity["base_layer"]]
    best = best.merge(own[["run", "tuned_layer", "cka"]], on=["run", "tuned_layer"], suffixes=("", "_own"))
    best["gap"] = best["cka"] - best["cka_own"]
    drift = study.table("drift_metrics")
    if drift is None:
        return best.assign(cka_stderr=float("nan"))
    errors = mean_states(last_checkpoints(drift))[["run", "layer", "cka_stderr"]]
    return best.merge(errors.rename(columns={"layer": "tuned_layer"}), on=["run", "tuned_layer"], how="left")


def _pairs(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.tuned_layer} ({row.base_layer})" for row in rows_of(rows))
