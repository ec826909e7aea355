"""Debiased linear CKA of every layer of one model with every layer of another, from Gram matrices. No I/O.

With L layers each, L² feature-space products would cost 2 n d² flops apiece; the Gram matrices are L and
their inner products 2 n² flops, so for n up to many times d they are the cheaper of two equal ways.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rankdrift.analysis.mathematics.representation.moments import centred, hsic_ratio, require_rows

BLOCK_ELEMENTS = 2**18
"""Elements of each layer's Gram matrix held at once."""

Rows = Callable[[], Tensor]
"""Reads one layer's rows, (n, d)."""


def layer_grid_cka(base: Sequence[Rows], tuned: Sequence[Rows]) -> Tensor:
    """Return CKA of base layer i and tuned layer j over the same n rows, (len(base), len(tuned)) fp64.

    It is the ``cka`` of ``moments``, layer pair by layer pair; NaN where a representation is constant.
    Memory is one layer's rows and BLOCK_ELEMENTS fp64 for each layer of both.

    Raises
    ------
    UserError
        For fewer than four rows.

    """
    hsic = _hsic_of_all([*base, *tuned])
    own = hsic.diagonal()
    count = len(base)
    return hsic_ratio(own[:count, None], hsic[:count, count:], own[None, count:])


def _hsic_of_all(layers: Sequence[Rows]) -> Tensor:
    """Return the debiased HSIC1 of every pair of layers, (layers, layers) (arXiv 2010.15327 eq. 3)."""
    n = len(layers[0]())
    require_rows(n)
    traces, sums = torch.zeros(len(layers), len(layers), dtype=torch.float64), []
    bounds = [*range(0, n, max(1, BLOCK_ELEMENTS // n)), n]
    for first, last in itertools.pairwise(bounds):
        grams = torch.stack([_gram_rows(centred(layer()), first, last) for layer in layers])
        sums.append(grams.sum(dim=2))
        flat = grams.flatten(start_dim=1)
        traces += flat @ flat.T
    row_sums = torch.cat(sums, dim=1)  # (layers, n)
    totals = row_sums.sum(dim=1)
    corner = torch.outer(totals, totals) / ((n - 1) * (n - 2))
    return (traces + corner - 2 / (n - 2) * row_sums @ row_sums.T) / (n * (n - 3))


def _gram_rows(x: Tensor, first: int, last: int) -> Tensor:
    """Return rows first..last of X Xᵀ with a zero diagonal, (last - first, n)."""
    gram = x[first:last] @ x.T
    gram.diagonal(offset=first).zero_()
    return gram
