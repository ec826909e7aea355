"""How far each layer's representations moved: base against tuned model on the same inputs.

Representations are hidden states averaged over each input's tokens, so nothing here speaks of single
tokens. CKA is blind to rotation and isotropic scaling and can be dominated by a few directions of large
variance; cosine and relative distance are blind to neither, and raw cosine is dominated by the common mean.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pandas as pd
from torch import Tensor

from rankdrift.analysis import similarity
from rankdrift.analysis.analyses import Analysis, Params
from rankdrift.analysis.similarity import HsicEstimates
from rankdrift.analysis.sources import activations, models
from rankdrift.analysis.sources.activations import TokenRows
from rankdrift.analysis.subjects import Subject
from rankdrift.errors import UserError

TABLE = "drift_metrics"
COLUMNS = {
    "layer": "0: what enters the first block (embeddings); i: what leaves block i, before any final norm",
    "cka": "debiased linear CKA (arXiv 2010.15327); NaN where a representation is constant over the inputs",
    "cka_stderr": "jackknife standard error of cka over shards of the inputs",
    "cka_biased": "linear CKA as in arXiv 1905.00414; tends to 1 for few inputs whatever the representations",
    "cosine": "mean over inputs of cos(base, tuned)",
    "cosine_centered": "the same after subtracting each model's mean over the inputs",
    "relative_l2": "||tuned - base||_F / ||base||_F over all inputs",
    "n": "inputs",
}


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return one row a layer; no rows for the base model, which has not drifted.

    Raises
    ------
    UserError
        If there are no inputs or too few, or the models cannot be compared.

    """
    if subject.tuned is None:
        return {}
    inputs = _inputs(params)
    states = activations.base_states(subject.base, inputs, params.cache)
    base, self_hsic = _base_side(states)
    tuned = activations.pooled_states(models.load_tuned(subject.base, subject.tuned), inputs)
    if tuned.shape != base.shape:
        raise UserError(
            f"{subject.tuned}: {tuned.shape[1] - 1} blocks of width {tuned.shape[2]}, but its base "
            f"{subject.base} has {base.shape[1] - 1} of width {base.shape[2]}; name the right base model"
        )
    layers = zip(base.unbind(dim=1), tuned.unbind(dim=1), self_hsic, strict=True)
    rows = [
        {"layer": layer, **dataclasses.asdict(similarity.compare(x, y, xx))}
        for layer, (x, y, xx) in enumerate(layers)
    ]
    return {TABLE: pd.DataFrame(rows, columns=list(COLUMNS))}


def _inputs(params: Params) -> TokenRows:
    if params.drift_inputs is None:
        raise UserError("drift: no inputs; give a Parquet file with a column 'input_ids' as drift_inputs")
    inputs = activations.read_rows(params.drift_inputs, params.drift_rows)
    if len(inputs.rows) < similarity.MIN_ROWS:
        raise UserError(
            f"{inputs.path}: {len(inputs.rows)} rows to compare representations over, drift needs at least "
            f"{similarity.MIN_ROWS}; add rows or raise drift_rows={params.drift_rows}"
        )
    return inputs


@functools.lru_cache(maxsize=1)
def _base_side(states: Path) -> tuple[Tensor, list[HsicEstimates]]:
    """Return the base's states and each layer's HSIC with itself, once for all checkpoints.

    The file's name is a digest of what the states depend on, so it never stands for other states.
    """
    base = activations.read_states(states)
    return base, [similarity.hsic_estimates(layer, layer) for layer in base.unbind(dim=1)]


ANALYSIS = Analysis(
    name="drift",
    columns={TABLE: COLUMNS},
    per="checkpoint",
    compute=compute,
    parameters=("drift_rows", "drift_inputs"),
)
