"""What a floating-point format loses of weights that are stored in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COARSE = (torch.bfloat16, torch.float16)
"""Formats whose spacing is wide enough to hide an update: 2^-7 and 2^-10 of a weight's power of two."""
CHUNK = 2**20
"""Weights whose spacing is in memory at once: some 30 MB."""


def rounding_norm(weights: Tensor, dtype: torch.dtype) -> float:
    """Return the expected Frobenius norm of the error that rounding to a format left in stored weights.

    Rounding to the nearest of two values that lie u apart errs uniformly in [-u/2, u/2], with variance
    u^2 / 12 (Widrow and Kollar, Quantization Noise, 2008), so the norm is sqrt(sum of u^2 / 12), with the
    spacing u of each weight. It is 0 for float32 and wider: updates are computed from those as they are.

    Parameters
    ----------
    weights
        The stored values, of any shape, in float32.
    dtype
        The format they were rounded to.

    """
    if dtype not in COARSE:
        return 0.0
    return _error_norm(weights, dtype)


def length_rounding_norm(lengths: Tensor, dtype: torch.dtype) -> float:
    """Return the norm of the error that rounding DoRA's lengths m to a format left in dW = m V / ||V|| - W0.

    An error of m_i is that of an output's whole row, so unlike that of the factors it is in proportion to W0,
    not to dW: in bfloat16 as large as that of the whole matrix. In float32 it counts as well: before training
    m = ||W0|| up to rounding, and dW is nothing else.
    """
    return _error_norm(lengths, dtype)


def _error_norm(values: Tensor, dtype: torch.dtype) -> float:
    """Return sqrt(sum of u^2 / 12) over the spacings u."""
    parts = values.reshape(-1).split(CHUNK)
    return math.sqrt(sum(float(_spacing(part, dtype).square_().sum()) for part in parts) / 12)


def _spacing(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance of neighbouring values of a format at each weight, in float64."""
    information = torch.finfo(dtype)
    _, exponents = torch.frexp(weights)  # |w| = m 2^e with m in [1/2, 1): spacing eps 2^(e - 1)
    powers = torch.ldexp((weights != 0).double(), exponents - 1)
    return information.eps * powers.clamp_(min=information.tiny)  # below tiny it no longer shrinks
