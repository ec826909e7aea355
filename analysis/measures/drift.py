"""How far each layer's representations moved: base against tuned model on the same inputs.

Each layer is compared in three representations of the inputs and with two sets of features, six rows in all.
CKA is blind to rotation and isotropic scaling and can be dominated by a few directions of large variance, so
it is also given without the dimensions of largest variance; cosine and relative distance are blind to
neither, and raw cosine is dominated by the common mean. Whatever is compared, standard errors are over
inputs. The base is run once for all checkpoints: its states, and what concerns it alone, are kept in
``params.cache``, so another checkpoint costs one pass and its own products; the tuned model's states lie
there while its layers are taken one after another. Memory beside the model is one layer's: its rows in fp64,
(n, d) of both, and 20 matrices of (d, d). With ``keep_representations`` the mean-pooled states of the
base and of every checkpoint stay in the cache, ``layer_{i}`` by ``layer_{i}``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.findings import Finding, Headline, Listing, Sentence, among
from rankdrift.analysis.mathematics.representation import moments, similarity
from rankdrift.analysis.mathematics.representation.layer_grid import layer_grid_cka
from rankdrift.analysis.mathematics.representation.principal import columns_without_top
from rankdrift.analysis.sources import activations, models
from rankdrift.analysis.sources.activations import REPRESENTATIONS, Representation, States, TokenRows
from rankdrift.analysis.sources.base_layers import stored_side
from rankdrift.analysis.sources.models import Precision
from rankdrift.analysis.sources.observations import last_checkpoints, mean_states
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import step_name
from rankdrift.settings import PositiveInt, Section

TABLE = "drift_metrics"
GRID = "layer_similarity"
VERSION = 4
"""Raised whenever the numbers change; part of the names of what is kept of the base."""
FEATURES = ("all", "without_top")
COLUMNS = {
    "layer": "0: what enters the first block (embeddings); i: what leaves block i, before any final norm",
    "representation": "mean: of an input's tokens; last_token: of an input; token: a row a token, at most "
    f"{activations.TOKENS_PER_WIDTH} d of them, evenly spread over every input; padding is never one",
    "features": "all; without_top: without the 1 % of the dimensions (at least 1) of largest variance in "
    "this layer and representation of the base",
    "cka": "debiased linear CKA (arXiv 2010.15327); of tokens over pairs from different inputs alone; at "
    "most 1; NaN where a representation is constant over the rows",
    "cka_stderr": f"jackknife standard error of cka over {moments.SHARDS} shards of the inputs",
    "cka_biased": "linear CKA as in arXiv 1905.00414; tends to 1 for few rows whatever the representations",
    "cosine": "mean over rows of cos(base, tuned)",
    "cosine_centered": "the same after subtracting each model's mean over the rows",
    "relative_l2": "||tuned - base||_F / ||base||_F over all rows",
    "procrustes": "orthogonal Procrustes distance sqrt(2 - 2 ||XᵀY||_*) of centred X, Y of norm 1 (arXiv "
    "2110.14739), 0 to sqrt(2); below 3e-8 is rounding; for n << d unrelated rows give sqrt(n / (2 d)) or so",
    "svcca": "mean canonical correlation of the directions with 99 % of each one's variance (arXiv "
    "1706.05806); NaN unless analysis.drift.canonical, and with fewer than 10 rows a direction, which takes "
    "thousands of inputs; blind to every invertible linear map",
    "pwcca": "the same, weighted by what each variate accounts for of the base (arXiv 1806.05759)",
    "subspace_overlap": f"||UᵀV||_F²/k of the k = {similarity.OVERLAP_DIRECTIONS} leading principal "
    "directions of base and tuned, 0 to 1",
    "subspace_overlap_random": "what random subspaces give: k/d",
    "n": "rows: inputs, or tokens",
    "reason": "why values are NaN; empty where none is",
}
GRID_COLUMNS = {
    "base_layer": "layer of the base, as in drift_metrics",
    "tuned_layer": "layer of the tuned model",
    "cka": "debiased linear CKA of mean-pooled states, all features; NaN where one is constant",
    "n": "inputs",
    "reason": "why cka is NaN; empty where it is not",
}


class Settings(Section):
    """Settings of layer drift."""

    rows: PositiveInt = 64
    """Inputs over which it is measured (the first ones)."""
    precision: Precision = "fp32"
    """Arithmetic of both models' products; bf16 is faster on a GPU, and its rounding is in every number."""
    canonical: bool = False
    """Whether SVCCA and PWCCA are computed: they need ten rows for every direction that is compared."""
    keep_representations: bool = False
    """Whether each checkpoint's mean-pooled states are stored, ``layer_{i}`` by ``layer_{i}``."""


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return six rows a layer, and a row for every pair of layers; none for the base, which has not drifted.

    Raises
    ------
    UserError
        If there are no inputs or too few, or the models cannot be compared.

    """
    if subject.tuned is None:
        return {}
    settings = params.of(Settings)
    inputs = _inputs(params.drift_inputs, settings.rows)
    base = activations.base_states(subject.base, inputs, params.cache, settings.precision)
    with activations.tuned_states(
        models.load_tuned(subject.base, subject.tuned, subject.initial),
        inputs,
        params.cache,
        settings.precision,
    ) as tuned:
        _check_alike(subject, base, tuned)
        if settings.keep_representations:
            keep_representations(base, base, "base")
            keep_representations(tuned, base, f"{subject.run}-{step_name(subject.step)}")
        return {
            TABLE: pd.DataFrame(drift_rows(base, tuned, settings.canonical), columns=list(COLUMNS)),
            GRID: pd.DataFrame(grid_rows(base, tuned), columns=list(GRID_COLUMNS)),
        }


def keep_representations(states: States, base: States, name: str) -> None:
    """Write mean-pooled states as ``<name>.safetensors``: ``layer_{i}``, (n, d) fp32, in the inputs' order.

    The folder is ``representations`` beside the base's states, so it is of one base model and these inputs.
    """
    layers = {f"layer_{layer}": states.rows(layer, "mean") for layer in range(states.shape[0])}
    with files.replacing(base.path.parent / "representations" / f"{name}.safetensors") as temporary:
        save_file(layers, temporary)


def drift_rows(base: States, tuned: States, canonical: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``drift_metrics``, layer by layer; ``canonical`` as in ``similarity.compare``."""
    for layer, representation in itertools.product(range(base.shape[0]), REPRESENTATIONS):
        x, y = base.rows(layer, representation), tuned.rows(layer, representation)
        for features in FEATURES:
            kept = columns_without_top(x) if features == "without_top" else slice(None)
            found = _compare(base, layer, representation, features, x[:, kept], y[:, kept], canonical)
            place = {"layer": layer, "representation": representation, "features": features}
            yield place | dataclasses.asdict(found)


def _compare(
    base: States,
    layer: int,
    representation: Representation,
    features: str,
    x: Tensor,
    y: Tensor,
    canonical: bool,
) -> similarity.Similarity:
    """Return how alike the kept features of one layer are; the base's part is kept beside its states."""
    inputs = base.inputs_of(representation)
    path = base.path.with_name(f"{representation}-{features}-{layer:03d}-v{VERSION}.safetensors")
    return similarity.compare(x, y, inputs, stored_side(path, x, inputs), canonical)


def grid_rows(base: States, tuned: States) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``layer_similarity``."""
    layers = range(base.shape[0])
    sides = [[functools.partial(states.rows, layer, "mean") for layer in layers] for states in (base, tuned)]
    values = layer_grid_cka(*sides)
    for i, j in itertools.product(layers, layers):
        value = float(values[i, j])
        reason = "" if value == value else "the debiased variance of a representation is not above zero"
        place = {"base_layer": i, "tuned_layer": j}
        yield place | {"cka": value, "n": len(base.inputs.rows), "reason": reason}


def _check_alike(subject: Subject, base: States, tuned: States) -> None:
    """Raise UserError where depths or widths differ."""
    if tuned.shape != base.shape:
        raise UserError(
            f"{subject.tuned}: {tuned.shape[0] - 1} blocks of width {tuned.shape[1]}, but its base "
            f"{subject.base} has {base.shape[0] - 1} of width {base.shape[1]}; name the right base model"
        )


def _inputs(path: Path | None, count: int) -> TokenRows:
    if path is None:
        raise UserError("drift: no inputs; give a Parquet file with a column 'input_ids' as drift_inputs")
    inputs = activations.read_rows(path, count)
    if len(inputs.rows) < moments.MIN_ROWS:
        raise UserError(
            f"{inputs.path}: {len(inputs.rows)} rows to compare representations over, drift needs at least "
            f"{moments.MIN_ROWS}; add rows or raise analysis.drift.rows={count}"
        )
    return inputs


POOLED = {"mean": "means of the tokens", "last_token": "last tokens", "token": "single tokens"}
KEPT = {"all": "all dimensions", "without_top": "without those of largest variance"}


def _states(drift: pd.DataFrame) -> pd.DataFrame:
    """Return each run's middle and last mean-pooled `state`, with the median and extremes over all states.

    The lowest CKA of many states is low by chance, which its own error leaves out: it is not stated.
    """
    rows = mean_states(last_checkpoints(drift)).dropna(subset=["cka"])
    by_run = rows.groupby("run")
    place, states = by_run["layer"].rank() - 1, by_run["layer"].transform("size")
    shift = by_run["relative_l2"].transform("max")
    shifted = rows["layer"].where(rows["relative_l2"] == shift).groupby(rows["run"]).transform("min")
    rows = rows.assign(median=by_run["cka"].transform("median"), shift=shift, shifted=shifted)
    fixed = {"middle": rows[place == states // 2], "last": rows[place == states - 1]}
    return pd.concat([found.assign(state=name) for name, found in fixed.items()])


def _last_states(drift: pd.DataFrame) -> pd.DataFrame:
    """Return the last states of all representations and features, if there are others than means of all."""
    rows = last_checkpoints(drift).dropna(subset=["cka"])
    last = rows[rows["layer"] == rows.groupby("run")["layer"].transform("max")]
    last = last.assign(pooled=last["representation"].map(POOLED), kept=last["features"].map(KEPT))
    return among(last, len(rows) > len(mean_states(rows)))


def _best_matches(similarity: pd.DataFrame, drift: pd.DataFrame | None) -> pd.DataFrame:
    """Return each tuned state's best match: whether it has `moved`, and by a `clear` gap to its own state's.

    The error is that of mean-pooled states in `drift_metrics`; NaN without it, so that nothing is clear.
    """
    known, state = last_checkpoints(similarity).dropna(subset=["cka"]), ["run", "tuned_layer"]
    own = known.query("tuned_layer == base_layer")[[*state, "cka"]].rename(columns={"cka": "own"})
    best = known.sort_values("cka", ascending=False, kind="stable").drop_duplicates(state)
    best = best.sort_values(state).merge(own, on=state)
    if drift is not None:
        errors = mean_states(last_checkpoints(drift))[["run", "layer", "cka_stderr"]]
        best = best.merge(errors.rename(columns={"layer": "tuned_layer"}), on=state, how="left")
    best["moved"] = best["tuned_layer"] != best["base_layer"]
    best["clear"] = best["cka"] - best["own"] > 1.96 * best.get("cka_stderr", float("nan"))
    best["pair"] = best["tuned_layer"].astype(str) + " (" + best["base_layer"].astype(str) + ")"
    return best.assign(still=best["run"].mask(best.groupby("run")["moved"].transform("any")))


TOPIC = "Drift of the representations"
STATE = "{cka,cka_stderr:with_error 4} ({layer})"
STATES = Listing(
    {
        "run": "{run}",
        "CKA ± standard error, {state} state": STATE,
        "median CKA over states": "{median:number 4}",
        "largest shift (of the norm)": "{shift:percent}",
        "shift at state": "{shifted:count}",
    },
    "Hidden states of the tuned model and of the base, means over the tokens of {n.unique:listed} inputs; "
    "state 0 are the embeddings, state n is what block n - 1 gives",
)
LAST_STATES = Listing(
    {"run": "{run}", "{pooled}, {kept}": "{cka,cka_stderr:with_error 4}"},
    "CKA of the last state ± standard error over inputs, by what is taken for a representation",
)
MATCHES = Sentence(
    "In {still.nunique} of {run.nunique} runs every state is, by CKA, most like the same state of the base. "
    "Of {moved.sum} that are more like another one, {clear.sum} are so by more than 1.96 standard errors of "
    "their CKA with their own."
)
MOVED = Listing(
    {"run": "{run}", "tuned state (base state)": "{pair.unique:listed}"},
    "States more like another state of the base than like their own, by more than that error",
    lambda best: best[best["clear"]],
)
FINDINGS = (
    Finding(TOPIC, (TABLE,), _states, (STATES,)),
    Finding(TOPIC, (TABLE,), _last_states, (LAST_STATES,)),
    Finding(TOPIC, (GRID,), _best_matches, (MATCHES, MOVED), beside=(TABLE,)),
)
HEADLINE = Headline(
    TABLE, _states, {"CKA, {state} state": STATE}, "States are counted from 0, the embeddings."
)
ANALYSIS = Analysis(
    name="drift",
    columns={TABLE: COLUMNS, GRID: GRID_COLUMNS},
    per="checkpoint",
    compute=compute,
    settings=Settings,
    rows="drift_inputs",
    version=VERSION,
    findings=FINDINGS,
    headline=(HEADLINE,),
)
