"""Orthogonal Procrustes distance: blind to rotation, shift and isotropic scale. No I/O."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def procrustes_distance(products: Tensor, norm_x: float, norm_y: float) -> float:
    """Return min over orthogonal Q of ||X Q - Y||_F for X, Y centred and of Frobenius norm 1, in [0, √2].

    It is sqrt(2 - 2 ||XᵀY||_*), the distance itself and not its square, so it is a metric (arXiv
    2110.14739; arXiv 2108.01661 uses the square). ``products`` is XᵀY of the centred representations before
    normalisation, (d_x, d_y) fp64, in any orthonormal bases; the norms are theirs. A distance below about
    3e-8 is rounding: 2 - 2c loses half the digits. NaN where a representation is constant.
    """
    scale = norm_x * norm_y
    if scale == 0:
        return math.nan
    alike = float(torch.linalg.svdvals(products).sum()) / scale
    return math.sqrt(max(2 - 2 * alike, 0.0))
