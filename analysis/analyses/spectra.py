"""What tuning did to every projection: spectra of W0, W and dW, ranks beside nulls, intruders, subspaces.

Three cautions. Ranks of a LoRA update are at most r by construction: compare with the null and with r, not
with full fine-tuning. An intruder vector is one spread over many base vectors, not one outside their span,
and its count saturates: read it beside its energy share and the size of the update. Layers and matrices of
one model are not independent replicates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis import linalg, nulls
from rankdrift.analysis.analyses import Analysis, Params
from rankdrift.analysis.linalg import SingularSystem
from rankdrift.analysis.parallel import parallel_map
from rankdrift.analysis.sources.adapters import LowRankUpdate
from rankdrift.analysis.sources.base_spectra import BaseSpectra
from rankdrift.analysis.sources.weights import (
    BaseWeights,
    DenseUpdate,
    MatrixPair,
    Projection,
    TunedWeights,
    open_weights,
)
from rankdrift.analysis.subjects import Subject

BF16_ROUNDING = 0.0017
"""||e||_F / ||W||_F of rounding W to bfloat16, measured on model weights: an update below it is lost."""

RANKS = {
    "threshold_rank": "singular values above 1e-5 (absolute; almost always all of them)",
    "numerical_rank": "singular values above sigma_1 max(rows, columns) eps, eps of float32",
    "entropy_rank": "exp of the entropy of sigma / sum(sigma)",
    "energy_entropy_rank": "exp of the entropy of sigma^2 / sum(sigma^2)",
    "stable_rank": "sum(sigma^2) / sigma_1^2",
    "participation_ratio": "sum(sigma^2)^2 / sum(sigma^4)",
    "e90_energy": "fewest leading values with 90 % of sum(sigma^2)",
    "e95_energy": "fewest leading values with 95 % of sum(sigma^2)",
    "e90_nuclear": "fewest leading values with 90 % of sum(sigma)",
    "e95_nuclear": "fewest leading values with 95 % of sum(sigma)",
}
SIZES = {"norm": "Frobenius norm", "sigma1": "largest singular value"}
METRICS = {**SIZES, **RANKS, "nuclear_norm": "sum of singular values"}
MATRICES = {"base": "W0", "tuned": "W", "update": "dW = W - W0"}
NULLS = {
    "tuned": "iid Gaussian noise of that shape",
    "update": "iid Gaussian noise of that shape, or Gaussian B A of the same r; NaN where not adapted",
}

COLUMNS: dict[str, str] = {
    "layer": "block, 0-based",
    "module": "projection: q_proj ... down_proj",
    "rows": "outputs of the matrix",
    "columns": "inputs of the matrix",
    **{f"{m}_{key}": f"{meaning}, of {MATRICES[m]}" for m in MATRICES for key, meaning in METRICS.items()},
    **{f"{m}_{key}_null": f"{m}_{key} of {null}" for m, null in NULLS.items() for key in RANKS},
    "relative_update_norm": "||dW||_F / ||W0||_F",
    "sigma1_ratio": "sigma_1(dW) / sigma_1(W0)",
    "spearman_sigma": "rank correlation of |u_i^T W v_i| with sigma_i; u_i, sigma_i, v_i of W0",
    "angle_left_mean": "mean principal angle of the leading left singular vectors of W and W0, radians",
    "angle_left_max": "largest of these angles, radians",
    "angle_right_mean": "mean principal angle of the leading right singular vectors of W and W0, radians",
    "angle_right_max": "largest of these angles, radians",
    "overlap_left": "mean cos^2 of the left angles: 1 is the same subspace",
    "overlap_right": "mean cos^2 of the right angles",
    "overlap_random": "what random subspaces give: mean of k / rows and k / columns",
    "intruders_left": "leading left vectors of W with |cosine| below the threshold to all of W0",
    "intruders_right": "leading right vectors of W with |cosine| below the threshold to all of W0",
    "intruder_energy_left": "left intruders' share of the leading vectors' sigma^2",
    "intruder_energy_right": "right intruders' share of the leading vectors' sigma^2",
    "bf16_floor_ratio": "||dW||_F / (0.0017 ||W0||_F): below 1, bfloat16 weights lose the update",
}
VALUES: dict[str, str] = {
    "layer": COLUMNS["layer"],
    "module": COLUMNS["module"],
    "matrix": "base (W0), tuned (W) or update (dW; r values for an adapter of rank r)",
    "index": "0-based, by size",
    "sigma": "singular value",
}


@dataclass(frozen=True)
class Measured:
    """What one matrix gives: its row of ``svd_analysis_results``, and its spectra by matrix."""

    row: dict[str, Any]
    spectra: dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Measures one projection of a checkpoint after the other; sent to the processes that share them."""

    weights: TunedWeights
    base: BaseSpectra
    params: Params

    def measure(self, projection: Projection) -> Measured:
        """Compare one matrix with its base."""
        pair, base = self.weights.pair(projection), self.base.system(projection)
        tuned, update_sigma = _tuned_system(pair, base, self.params.top_k), _update_values(pair.update)
        spectra = {"base": base.sigma, "tuned": tuned.sigma, "update": update_sigma}
        row = {
            "layer": projection.layer,
            "module": projection.module,
            "rows": pair.base.shape[0],
            "columns": pair.base.shape[1],
            **_sizes_and_ranks(spectra, *pair.base.shape),
            **_null_ranks(pair),
            **_relative_size(spectra),
            "spearman_sigma": linalg.spearman(_gains(pair.update, base), base.sigma),
            **_subspaces(tuned, base),
            **_intruders(tuned, base, self.params.intruder_threshold),
        }
        return Measured(row, {name: spectra[name] for name in ("tuned", "update")})


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return both tables of a checkpoint; of the base model, its singular values alone."""
    spectra = BaseSpectra(BaseWeights(subject.base), params.cache)
    if subject.tuned is None:
        spectra.prepare(params.workers)
        values = [_values(p, "base", spectra.sigma(p)) for p in spectra.base.names]
        return {"singular_values": pd.concat(values, ignore_index=True)}
    comparison = Comparison(open_weights(subject.base, subject.tuned), spectra, params)
    spectra.prepare(params.workers)
    names = list(spectra.base.names)
    measured = parallel_map(comparison.measure, names, params.workers)
    values = [
        _values(projection, matrix, sigma)
        for projection, result in zip(names, measured, strict=True)
        for matrix, sigma in result.spectra.items()
    ]
    return {
        "svd_analysis_results": pd.DataFrame([result.row for result in measured], columns=list(COLUMNS)),
        "singular_values": pd.concat(values, ignore_index=True),
    }


def _tuned_system(pair: MatrixPair, base: SingularSystem, top: int) -> SingularSystem:
    """Return the spectrum and leading vectors of W, which are the base's own where nothing was changed."""
    if _is_zero(pair.update):
        return SingularSystem(base.sigma, base.left[:, :top], base.right[:, :top])
    return linalg.singular_system(pair.tuned.numpy(), top)


def _is_zero(update: DenseUpdate | LowRankUpdate) -> bool:
    if isinstance(update, DenseUpdate):
        return not update.values.any()
    return not update.left.any() or not update.right.any()


def _update_values(update: DenseUpdate | LowRankUpdate) -> np.ndarray:
    if isinstance(update, DenseUpdate):
        return linalg.singular_values(update.values.numpy())
    if update.rank == 0:
        return np.zeros(0)
    return abs(update.scale) * linalg.product_singular_values(update.left.numpy(), update.right.numpy())


def _sizes_and_ranks(spectra: dict[str, np.ndarray], rows: int, columns: int) -> dict[str, float]:
    return {
        f"{name}_{key}": value
        for name, sigma in spectra.items()
        for key, value in dataclasses.asdict(linalg.rank_metrics(sigma, rows, columns)).items()
    }


def _null_ranks(pair: MatrixPair) -> dict[str, float]:
    rows, columns = pair.base.shape
    noise = nulls.gaussian_null(rows, columns)
    tuned = {f"tuned_{key}_null": getattr(noise, key) for key in RANKS}
    if isinstance(pair.update, LowRankUpdate):
        if pair.update.rank == 0:
            return tuned | {f"update_{key}_null": float("nan") for key in RANKS}
        noise = nulls.product_null(rows, columns, pair.update.rank)
    return tuned | {f"update_{key}_null": getattr(noise, key) for key in RANKS}


def _relative_size(spectra: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the update's size beside the base's; NaN where the base is the zero matrix."""
    norms = {name: float(np.linalg.norm(sigma)) for name, sigma in spectra.items()}
    relative = norms["update"] / norms["base"] if norms["base"] else float("nan")
    largest = spectra["update"].max(initial=0.0)
    return {
        "relative_update_norm": relative,
        "sigma1_ratio": largest / spectra["base"][0] if norms["base"] else float("nan"),
        "bf16_floor_ratio": relative / BF16_ROUNDING,
    }


def _gains(update: DenseUpdate | LowRankUpdate, base: SingularSystem) -> np.ndarray:
    """Return |u_i^T W v_i| (k,) = |sigma_i + u_i^T dW v_i|: how W acts along the base's directions.

    Sorted singular values of W and W0 would correlate perfectly whatever W is.
    """
    if isinstance(update, DenseUpdate):
        left, right = base.left.T @ update.values.float().numpy(), base.right.T
    else:
        left, right = (
            update.scale * (base.left.T @ update.left.numpy()),
            (update.right.numpy() @ base.right).T,
        )
    return np.abs(base.sigma + np.einsum("ij,ij->i", left, right))


def _subspaces(tuned: SingularSystem, base: SingularSystem) -> dict[str, float]:
    rows, columns, top = len(base.left), len(base.right), tuned.left.shape[1]
    left = linalg.principal_angles(base.left[:, :top], tuned.left)
    right = linalg.principal_angles(base.right[:, :top], tuned.right)
    return {
        "angle_left_mean": float(left.mean()),
        "angle_left_max": float(left.max()),
        "angle_right_mean": float(right.mean()),
        "angle_right_max": float(right.max()),
        "overlap_left": linalg.subspace_overlap(left),
        "overlap_right": linalg.subspace_overlap(right),
        "overlap_random": (top / rows + top / columns) / 2,
    }


def _intruders(tuned: SingularSystem, base: SingularSystem, threshold: float) -> dict[str, float]:
    sigma = tuned.sigma[: tuned.left.shape[1]]
    left = linalg.intruders(linalg.best_cosines(tuned.left, base.left), sigma, threshold)
    right = linalg.intruders(linalg.best_cosines(tuned.right, base.right), sigma, threshold)
    return {
        "intruders_left": left.count,
        "intruders_right": right.count,
        "intruder_energy_left": left.energy,
        "intruder_energy_right": right.energy,
    }


def _values(projection: Projection, matrix: str, sigma: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": projection.layer,
            "module": projection.module,
            "matrix": matrix,
            "index": np.arange(len(sigma)),
            "sigma": sigma,
        }
    )


ANALYSIS = Analysis(
    name="spectra",
    columns={"svd_analysis_results": COLUMNS, "singular_values": VALUES},
    per="checkpoint",
    compute=compute,
    parameters=("top_k", "intruder_threshold"),
    parquet_only=frozenset({"singular_values"}),
)
