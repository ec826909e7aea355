"""What tuning did to every matrix: spectra of W0, W and dW, ranks beside nulls, intruders, subspaces.

Three cautions. Ranks of a LoRA update are at most r by construction: compare with the null and with r, not
with full fine-tuning. An intruder vector is one spread over many base vectors, not one outside their span,
and its count saturates: read it beside its energy share and the size of the update. Layers and matrices of
one model are not independent replicates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.mathematics.spectral import intruders, linalg, nulls, spiked, subspaces
from rankdrift.analysis.mathematics.spectral.linalg import RankMetrics
from rankdrift.analysis.measures._matrix_comparison import SIDES, Comparison, compare
from rankdrift.analysis.measures._spectra_columns import RANKS, TABLES
from rankdrift.analysis.measures._spectra_findings import FINDINGS, HEADLINE
from rankdrift.analysis.sources.adapters import LowRankUpdate
from rankdrift.analysis.sources.base_spectra import BaseSpectra, unit_name
from rankdrift.analysis.sources.opened_weights import weights_of
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.analysis.sources.weights import BaseWeights, Projection
from rankdrift.settings import OpenFraction, PositiveInt, Section

BF16_ROUNDING = 0.0017
"""||e||_F / ||W||_F of rounding W to bfloat16, measured on model weights: an update below it is lost."""
MOSTLY_ROUNDING = 2**0.5
"""||dW||_F over the norm of the rounding in it where both parts of dW are as large: their squares add."""
NAN = float("nan")


class Settings(Section):
    """Settings of the spectra."""

    top_k: PositiveInt = 10
    """Leading singular vectors compared: intruders, principal angles."""
    intruder_threshold: OpenFraction = 0.5
    """A vector is an intruder where its largest |cosine| with the base's vectors is below this."""
    intruder_thresholds: tuple[OpenFraction, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """The grid of thresholds over which intruders are counted."""
    vector_counts: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 32, 64)
    """The grid of leading singular vectors, k, over which subspaces are compared and intruders counted."""


def split(subject: Subject, params: Params) -> list[str]:
    """Return the names of a model's matrices, ``0003.q_proj``, in the order of the tables.

    Raises UserError for a checkpoint that was not tuned from the base model.
    """
    if subject.tuned is not None:
        return list(map(unit_name, weights_of(subject).projections))
    return list(_units(subject.base, files.fingerprint(subject.base)))


def measure(subject: Subject, params: Params, unit: str) -> dict[str, pd.DataFrame]:
    """Return all tables' rows of one matrix; of the base model, its singular values alone."""
    stamp = files.fingerprint(subject.base)
    projection = _units(subject.base, stamp)[unit]
    if subject.tuned is None:
        spectra = BaseSpectra(_base(subject.base, stamp), params.cache)
        return {"singular_values": _values(projection, {"base": spectra.sigma(projection)})}
    settings = params.of(Settings)
    most = max(settings.top_k, *settings.vector_counts)
    found = compare(weights_of(subject), projection, params.cache, most)
    spectra_of_checkpoint = {name: found.spectra[name] for name in ("tuned", "update")}
    rows = {
        "svd_analysis_results": [_matrix_row(found, settings)],
        "subspace_drift": list(_subspace_rows(found, settings.vector_counts)),
        "intruder_dimensions": list(_intruder_rows(found, settings)),
    }
    frames = {table: pd.DataFrame(of, columns=list(TABLES[table])) for table, of in rows.items()}
    return frames | {"singular_values": _values(projection, spectra_of_checkpoint)}


@lru_cache(maxsize=2)
def _base(folder: Path, stamp: str) -> BaseWeights:
    """Open a base model; ``stamp`` tells changed files."""
    return BaseWeights(folder)


@lru_cache(maxsize=2)
def _units(folder: Path, stamp: str) -> dict[str, Projection]:
    """Return the matrices of a base model by the names of their units."""
    return {unit_name(projection): projection for projection in _base(folder, stamp).names}


def _matrix_row(found: Comparison, settings: Settings) -> dict[str, Any]:
    """Return the row of ``svd_analysis_results``."""
    return {
        **found.place,
        "rows": found.shape[0],
        "columns": found.shape[1],
        "update_rows": found.touched[0],
        "update_columns": found.touched[1],
        **_sizes_and_ranks(found.spectra, *found.shape),
        **_null_ranks(found),
        **_relative_size(found),
        **_spectral_distance(found),
        **_bulk(found),
        **_headline_subspaces(found, min(settings.top_k, *found.shape)),
        **_headline_intruders(found, settings),
        "stored_dtype": found.pair.stored_dtype,
        "noise_floor_ratio": _noise_floor_ratio(found),
        "reason": "; ".join(_reasons(found, min(settings.top_k, *found.shape))),
    }


def _sizes_and_ranks(spectra: dict[str, np.ndarray], rows: int, columns: int) -> dict[str, float]:
    return {
        f"{name}_{key}": value
        for name, sigma in spectra.items()
        for key, value in dataclasses.asdict(linalg.rank_metrics(sigma, rows, columns)).items()
    }


def _null_ranks(found: Comparison) -> dict[str, float]:
    """Return the ranks of noise of the shape of W and dW, and of their norms where that matters.

    The noise of dW is in the rows and columns that changed, not in those that never train.
    """
    update, changed = found.pair.update, found.touched
    tuned = _null_of("tuned", found, *_gaussian(*found.shape))
    if not all(changed):
        return tuned | {f"update_{key}_null": NAN for key in RANKS}
    if isinstance(update, LowRankUpdate):
        noise = nulls.product_null(*changed, update.rank), nulls.product_draws(*changed, update.rank)
    else:
        noise = _gaussian(*changed)
    return tuned | _null_of("update", found, *noise)


def _gaussian(rows: int, columns: int) -> tuple[RankMetrics, np.ndarray]:
    return nulls.gaussian_null(rows, columns), nulls.gaussian_singular_values(rows, columns)[None]


def _null_of(name: str, found: Comparison, noise: RankMetrics, draws: np.ndarray) -> dict[str, float]:
    values = {f"{name}_{key}_null": getattr(noise, key) for key in RANKS}
    norm = float(np.linalg.norm(found.spectra[name]))
    return values | {f"{name}_threshold_rank_null": nulls.threshold_rank_null(draws, norm)}


def _relative_size(found: Comparison) -> dict[str, float]:
    """Return the update's size beside the base's; NaN where the base is the zero matrix."""
    norms = {name: float(np.linalg.norm(sigma)) for name, sigma in found.spectra.items()}
    relative = norms["update"] / norms["base"] if norms["base"] else NAN
    return {
        "relative_update_norm": relative,
        "sigma1_ratio": found.update_norm / float(found.base.sigma[0]) if norms["base"] else NAN,
        "bf16_floor_ratio": relative / BF16_ROUNDING,
    }


def _spectral_distance(found: Comparison) -> dict[str, float]:
    """Return how the spectrum of W moved, in units of sigma_1(W0); NaN where that is 0."""
    largest, change = float(found.base.sigma[0]), found.tuned.sigma - found.base.sigma
    return {
        "spearman_sigma": linalg.spearman(found.gains, found.base.sigma),
        "wasserstein_sigma": float(np.mean(np.abs(change))) / largest if largest else NAN,
        "wasserstein2_sigma": float(np.sqrt(np.mean(change**2))) / largest if largest else NAN,
    }


def _bulk(found: Comparison) -> dict[str, float]:
    """Return what the Marchenko-Pastur laws of W0 and of a dense, nonzero dW say."""
    shape = found.shape
    noise = spiked.noise_level(found.base.sigma, *shape)
    onset = spiked.onset(noise, *shape)
    of_base = {
        "base_noise_std": noise,
        "intruder_onset": onset,
        "onset_ratio": found.update_norm / onset if onset else NAN,
    }
    names = ("noise_std", "bulk_edge", "spikes", "hard_threshold", "hard_rank")
    if isinstance(found.pair.update, LowRankUpdate) or not found.update.any():
        return of_base | {f"update_{name}": NAN for name in names}
    changed = found.touched
    noise = spiked.noise_level(found.update[: min(changed)], *changed)
    above, threshold = spiked.spike_threshold(noise, *changed), spiked.hard_threshold(noise, *changed)
    values = (
        noise,
        spiked.bulk_edge(noise, *changed),
        float(np.count_nonzero(found.update > above)),
        threshold,
        float(np.count_nonzero(found.update > threshold)),
    )
    return of_base | {f"update_{name}": value for name, value in zip(names, values, strict=True)}


def _noise_floor_ratio(found: Comparison) -> float:
    """Return ||dW||_F over the norm of the rounding in it: infinite for exact weights, NaN for no update."""
    norm = float(np.linalg.norm(found.update))
    if norm == 0:
        return NAN
    return norm / found.pair.rounding_norm if found.pair.rounding_norm else float("inf")


def _headline_subspaces(found: Comparison, k: int) -> dict[str, float]:
    angles = {side: _angles(found, side, k) for side in SIDES}
    return {
        **{f"angle_{side}_mean": float(angles[side].mean()) for side in SIDES},
        **{f"angle_{side}_max": float(angles[side].max()) for side in SIDES},
        **{f"overlap_{side}": subspaces.subspace_overlap(angles[side]) for side in SIDES},
        "overlap_random": (k / found.shape[0] + k / found.shape[1]) / 2,
    }


def _headline_intruders(found: Comparison, settings: Settings) -> dict[str, float]:
    row: dict[str, float] = {}
    for side in SIDES:
        flagged = _intruders(found, side, min(settings.top_k, *found.shape), settings.intruder_threshold)
        row |= {f"intruders_{side}": flagged.count, f"intruder_energy_{side}": flagged.energy}
    return row


def _angles(found: Comparison, side: str, k: int) -> np.ndarray:
    """Return the principal angles of the k leading vectors (k,); NaN where not that many are defined."""
    if k > found.defined:
        return np.full(k, NAN)
    first, second = getattr(found.start, side)[:, :k], getattr(found.tuned, side)[:, :k]
    return subspaces.principal_angles(first, second)


def _intruders(found: Comparison, side: str, k: int, threshold: float) -> intruders.Intruders:
    """Return the intruders among the k leading vectors, undefined (count NaN) where not that many are."""
    if k > found.defined:
        return intruders.Intruders(NAN, NAN)
    return intruders.intruders(found.cosines[side][:k], found.tuned.sigma[:k], threshold)


def _subspace_rows(found: Comparison, vector_counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``subspace_drift``."""
    counts = [k for k in vector_counts if k <= min(found.shape)]
    for side, dimension in zip(SIDES, found.shape, strict=True):
        for k in counts:
            angles = _angles(found, side, k)
            first, second = getattr(found.start, side)[:, :k], getattr(found.tuned, side)[:, :k]
            yield {
                **found.place,
                "side": side,
                "k": k,
                "angle_mean": float(angles.mean()),
                "angle_max": float(angles.max()),
                "overlap": subspaces.subspace_overlap(angles),
                "overlap_random": k / dimension,
                "vector_drift": subspaces.vector_drift(angles),
                "naive_drift": NAN if k > found.defined else subspaces.naive_drift(first, second),
                "gap": subspaces.spectral_gap(found.base.sigma, k),
                "wedin_bound": subspaces.wedin_bound(
                    found.base.sigma, found.tuned.sigma, found.update_norm, k
                ),
                "reliable": subspaces.keeps_its_place(found.base.sigma, found.update_norm, k),
                "reason": _undefined(found, k),
            }


def _intruder_rows(found: Comparison, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``intruder_dimensions``."""
    counts = [k for k in settings.vector_counts if k <= min(found.shape)]
    for side, dimension in zip(SIDES, found.shape, strict=True):
        base = (dimension, min(found.shape))
        for threshold in settings.intruder_thresholds:
            share = intruders.random_intruder_share(threshold, *base)
            for k in counts:
                flagged = _intruders(found, side, k, threshold)
                yield {
                    **found.place,
                    "side": side,
                    "threshold": threshold,
                    "k": k,
                    "count": flagged.count,
                    "energy_share": flagged.energy,
                    "count_random": k * share,
                    "cosine_random": intruders.random_cosine(*base),
                    "reason": _undefined(found, k),
                }


def _undefined(found: Comparison, k: int) -> str:
    """Return why the k leading vectors of W0 and W cannot be compared; empty where they can."""
    if k <= found.defined:
        return ""
    return f"only {found.defined} singular values of W0 and W are above 1e-7 sigma_1"


def _reasons(found: Comparison, k: int) -> Iterator[str]:
    """Yield why values of ``svd_analysis_results`` are NaN, noise, or not of all of W."""
    if not found.base.sigma[0]:
        yield "W0 is zero"
    elif not np.ptp(found.base.sigma):
        yield "spearman_sigma: all singular values of W0 are equal"
    elif not np.median(found.base.sigma):
        yield "onset_ratio: half of W0's singular values are 0, which is no bulk of noise"
    if isinstance(found.pair.update, LowRankUpdate) and found.pair.update.rank == 0:
        yield "not adapted: dW is zero"
    elif not found.update.any():
        yield "dW is zero"
    elif isinstance(found.pair.update, LowRankUpdate):
        yield "dW is a product of factors: no bulk of noise to fit"
    elif _noise_floor_ratio(found) < MOSTLY_ROUNDING:
        yield f"rounding to {found.pair.stored_dtype} may be the larger part of dW: its values are noise"
    for name, sigma in found.spectra.items():
        if sigma.any() and sigma[-1] <= linalg.UNDEFINED * sigma[0]:
            yield f"{name}_condition_number: smallest singular value below 1e-7 sigma_1"
    if undefined := _undefined(found, k):
        yield undefined
    yield from _rows_left_out(found)


def _rows_left_out(found: Comparison) -> Iterator[str]:
    rows, columns = (size - changed for size, changed in zip(found.shape, found.touched, strict=True))
    if all(found.touched) and (rows or columns):
        yield f"{rows} rows and {columns} columns of dW are zero: so are they in the noise beside it"
    if found.pair.new_rows:
        yield f"{found.pair.new_rows} rows of new tokens are left out"


def _values(projection: Projection, spectra: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return rows of ``singular_values``."""
    frames = [
        pd.DataFrame({"matrix": matrix, "index": np.arange(len(sigma)), "sigma": sigma})
        for matrix, sigma in spectra.items()
    ]
    rows = pd.concat(frames, ignore_index=True)
    return rows.assign(layer=projection.layer, module=projection.module)[
        ["layer", "module", "matrix", "index", "sigma"]
    ]


ANALYSIS = Analysis(
    name="spectra",
    columns=TABLES,
    per="checkpoint",
    split=split,
    measure=measure,
    settings=Settings,
    version=4,
    parquet_only=frozenset({"singular_values", "intruder_dimensions"}),
    findings=FINDINGS,
    headline=HEADLINE,
)
