"""Canonical correlations of two representations: SVCCA and PWCCA. No I/O.

Both are blind to every invertible linear map of what they keep, so to the scale of a drift, and both tend to
1 for unrelated representations when there are as many kept directions as rows: they are refused unless there
are many more rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation.principal import Principal

VARIANCE_SHARE = 0.99
"""Share of each representation's variance whose directions are kept (arXiv 1706.05806)."""
ROWS_PER_DIRECTION = 10
"""Rows there must be for every kept direction of either representation."""


@dataclass(frozen=True)
class CanonicalMeans:
    """Means of the canonical correlations of X (base) and Y (tuned)."""

    svcca: float
    """Unweighted mean (arXiv 1706.05806)."""
    pwcca: float
    """Mean weighted by how much of X each canonical variate of X accounts for (arXiv 1806.05759)."""


def required_rows(x: Principal, y: Principal) -> int:
    """Return how many rows ``canonical_means`` is sound for."""
    return ROWS_PER_DIRECTION * max(x.leading(VARIANCE_SHARE), y.leading(VARIANCE_SHARE))


def canonical_means(x: Tensor, y: Tensor, of_x: Principal, of_y: Principal) -> CanonicalMeans:
    """Return SVCCA and PWCCA of centred rows x and y, (n, d) fp64, with their principal directions.

    With the left singular vectors U_x (n, k_x), U_y (n, k_y) of the kept directions, the canonical
    correlations ρ_i are the singular values of U_xᵀU_y = A diag(ρ) Bᵀ and the variates of X are
    h_i = U_x a_i. SVCCA = mean ρ_i; PWCCA = Σ α_i ρ_i / Σ α_i, α_i = Σ_j |h_iᵀ X_j| over the columns of X.
    """
    scores_x, singular, directions = _kept(x, of_x)
    scores_y, _, _ = _kept(y, of_y)
    variates, correlations, _ = torch.linalg.svd(scores_x.T @ scores_y, full_matrices=False)
    correlations = correlations.clamp(max=1)  # above 1 by rounding only
    weights = ((variates.T * singular) @ directions.T).abs().sum(dim=1)  # hᵀX = aᵀ diag(σ) Vᵀ
    weighted = (weights * correlations).sum() / weights.sum()
    return CanonicalMeans(svcca=float(correlations.mean()), pwcca=float(weighted))


def _kept(x: Tensor, principal: Principal) -> tuple[Tensor, Tensor, Tensor]:
    """Return left singular vectors (n, k), singular values (k,) and directions (d, k) that are kept."""
    count = principal.leading(VARIANCE_SHARE)
    singular, directions = principal.squares[:count].sqrt(), principal.directions[:, :count]
    return (x @ directions) / singular, singular, directions
