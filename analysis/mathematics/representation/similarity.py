"""How alike a layer's representations of the same inputs are in a base and a tuned model. No I/O.

Rows are inputs, or tokens of inputs; columns are features; everything is computed in fp64. What concerns the
base alone (:class:`Side`) is the same for every checkpoint tuned from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation.canonical import (
    ROWS_PER_DIRECTION,
    VARIANCE_SHARE,
    CanonicalMeans,
    canonical_means,
    required_rows,
)
from rankdrift.analysis.mathematics.representation.moments import (
    HsicEstimates,
    centred,
    cka,
    hsic_estimates,
    shard_moments,
    total_moments,
)
from rankdrift.analysis.mathematics.representation.principal import (
    Principal,
    principal_directions,
    subspace_overlap,
)
from rankdrift.analysis.mathematics.representation.procrustes import procrustes_distance

OVERLAP_DIRECTIONS = 10
"""Leading principal directions whose spans are compared."""


@dataclass(frozen=True)
class Side:
    """What is needed of one model's representation X of a layer, apart from its rows."""

    hsic: HsicEstimates
    """Of X with itself."""
    principal: Principal
    """Directions that overlap and canonical correlations may need; no more are kept."""


@dataclass(frozen=True)
class Similarity:
    """How alike a layer's representations of the same n rows are, before (X) and after (Y) tuning."""

    cka: float
    """Debiased linear CKA; NaN where a representation is the same for all rows."""
    cka_stderr: float
    """Its jackknife standard error over shards of inputs; NaN where no shard can be left out."""
    cka_biased: float
    """The usual linear CKA, which tends to 1 for n << d whatever the representations are."""
    cosine: float
    """Mean cosine of x and y; NaN where a row is zero."""
    cosine_centered: float
    """The same after subtracting each representation's mean over the rows."""
    relative_l2: float
    """||Y - X||_F / ||X||_F; NaN where X is zero."""
    procrustes: float
    """Orthogonal Procrustes distance of centred, normalised X and Y, in [0, √2]."""
    svcca: float
    """Mean canonical correlation of the directions with 99 % of the variance; NaN with too few rows, or left
    out."""
    pwcca: float
    """The same, projection-weighted; NaN with too few rows."""
    subspace_overlap: float
    """Overlap of the spans of the leading principal directions, in [0, 1]."""
    subspace_overlap_random: float
    """What random subspaces give."""
    n: int
    """Rows."""
    reason: str
    """Why values are NaN; empty where none is."""


def side(x: Tensor, inputs: Tensor) -> Side:
    """Return what is needed of the rows x (n, d), which belong to the inputs (n,); UserError for n < 4."""
    return _centred_side(centred(x), inputs)


def _centred_side(x: Tensor, inputs: Tensor) -> Side:
    shards = shard_moments(x, x, inputs)
    total = total_moments(shards)
    principal = principal_directions(x, total.products if len(x) >= x.shape[1] else None)
    kept = principal.leading(VARIANCE_SHARE)
    usable = len(x) >= ROWS_PER_DIRECTION * kept
    principal = principal.truncated(max(OVERLAP_DIRECTIONS, kept if usable else 0))
    return Side(hsic=hsic_estimates(x, x, inputs, shards), principal=principal)


def compare(x: Tensor, y: Tensor, inputs: Tensor, base: Side, canonical: bool = True) -> Similarity:
    """Return how alike paired rows x and y, both (n, d), are; ``base`` is ``side(x, inputs)``.

    Without ``canonical`` SVCCA and PWCCA are left out, NaN without a reason. Representations that are equal
    bit by bit have CKA 1, standard error 0 and distances 0 exactly.

    Raises
    ------
    UserError
        For fewer than four rows.

    """
    x_centred, y_centred = centred(x), centred(y)
    if torch.equal(x, y):
        tuned, hsic, distance = base, base.hsic, _itself(base)
    else:
        tuned = _centred_side(y_centred, inputs)
        hsic, distance = _together(x_centred, y_centred, inputs, base, tuned)
    value, stderr, biased = cka(base.hsic, hsic, tuned.hsic)
    means = _canonical(x_centred, y_centred, base, tuned) if canonical else CanonicalMeans(math.nan, math.nan)
    values = {
        "cka": value,
        "cka_stderr": stderr,
        "cka_biased": biased,
        "cosine": mean_cosine(x, y),
        "cosine_centered": mean_cosine(x_centred, y_centred),
        "relative_l2": relative_l2(x, y),
        "procrustes": distance,
        "svcca": means.svcca,
        "pwcca": means.pwcca,
        "subspace_overlap": subspace_overlap(base.principal, tuned.principal, OVERLAP_DIRECTIONS),
    }
    return Similarity(
        **values,
        subspace_overlap_random=min(OVERLAP_DIRECTIONS / x.shape[1], 1.0),
        n=len(x),
        reason=_reason(values, len(x), base, tuned, canonical),
    )


def _itself(base: Side) -> float:
    """Return the Procrustes distance of a representation from itself."""
    return math.nan if _constant(base) else 0.0


def _together(x: Tensor, y: Tensor, inputs: Tensor, base: Side, tuned: Side) -> tuple[HsicEstimates, float]:
    """Return HSIC of centred x and y and their Procrustes distance, from the same sums."""
    shards = shard_moments(x, y, inputs)
    total = total_moments(shards)
    distance = procrustes_distance(total.products, base.principal.norm, tuned.principal.norm)
    return hsic_estimates(x, y, inputs, shards), distance


def _canonical(x: Tensor, y: Tensor, base: Side, tuned: Side) -> CanonicalMeans:
    needed = required_rows(base.principal, tuned.principal)
    if len(x) < needed or _constant(base) or _constant(tuned):
        return CanonicalMeans(math.nan, math.nan)
    return canonical_means(x, y, base.principal, tuned.principal)


def _constant(of: Side) -> bool:
    return len(of.principal.squares) == 0


def _reason(values: Mapping[str, float], n: int, base: Side, tuned: Side, canonical: bool) -> str:
    """Return why values are NaN, in the order of the columns; empty where none is that was asked for."""
    constant = [name for name, of in (("base", base), ("tuned", tuned)) if _constant(of)]
    if constant:
        return f"the representation is constant ({' and '.join(constant)})"
    needed = required_rows(base.principal, tuned.principal)
    found = min(len(of.principal.squares) for of in (base, tuned))
    rows = f"{n} rows, {needed} needed ({ROWS_PER_DIRECTION} for each direction kept)"
    why = {
        "cka": "the debiased variance of a representation is not above zero, or rows are of fewer than 3 "
        "inputs",
        "cka_stderr": "cka is undefined without some shard of the inputs",
        "cosine": "a row is zero",
        "cosine_centered": "a row is the mean of all",
        **({"svcca": rows, "pwcca": rows} if canonical else {}),
        "subspace_overlap": f"{found} principal directions, {OVERLAP_DIRECTIONS} needed",
    }
    return "; ".join(f"{name}: {text}" for name, text in why.items() if math.isnan(values[name]))


def mean_cosine(x: Tensor, y: Tensor) -> float:
    """Return the mean over rows of x·y / (|x||y|), for x and y (n, d); NaN where a row is zero."""
    x, y = x.double(), y.double()
    norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    return float(((x * y).sum(dim=1) / norms).mean())


def relative_l2(x: Tensor, y: Tensor) -> float:
    """Return ||Y - X||_F / ||X||_F for x and y (n, d); NaN where X is zero."""
    x = x.double()
    norm = torch.linalg.vector_norm(x)
    return float(torch.linalg.vector_norm(y.double() - x) / norm) if norm > 0 else math.nan
