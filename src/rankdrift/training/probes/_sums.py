"""Sums over the elements of many tensors: as exact as in fp64, and few operations where tensors are small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

RUN = 1024
"""Elements that are added up in fp32: few enough that rounding stays below 1e-6 of their sum."""
CHUNK = 2**18
"""Elements that go through several operations at once: those in between stay in the cache."""
SMALL = 2**15
"""Tensors of fewer are copied side by side: an operation on each takes longer than the copy."""

Portion = tuple[Tensor, tuple[Tensor, ...]]
"""Which tensor each row is of, int64 (rows,), and matrices (rows, ``RUN``), one of each list."""


def portions(*lists: Iterable[Tensor], at_once: int = CHUNK) -> Iterator[Portion]:
    """Yield the elements of flat tensors in rows, each of which is of one tensor; its end may be zeros.

    Of what is not ``SMALL`` whole rows are taken as they lie, ``at_once`` elements a time.

    Parameters
    ----------
    *lists
        Tensors side by side: the n-th of every list have the same length, and go through together.
    at_once
        A multiple of ``RUN``.

    """
    small: list[tuple[int, Sequence[Tensor]]] = []
    held = 0
    for number, vectors in enumerate(zip(*lists, strict=True)):
        numel = vectors[0].numel()
        whole = numel // RUN * RUN if numel >= SMALL else 0
        for begin in range(0, whole, at_once):
            part = slice(begin, min(begin + at_once, whole))
            rows = tuple(vector[part].view(-1, RUN) for vector in vectors)
            yield torch.full((len(rows[0]),), number, device=rows[0].device), rows
        if whole < numel:
            small.append((number, [vector[whole:] for vector in vectors] if whole else vectors))
            held += -(-(numel - whole) // RUN) * RUN
        if held >= CHUNK:
            yield _side_by_side(small)
            small, held = [], 0
    if small:
        yield _side_by_side(small)


def _side_by_side(small: Sequence[tuple[int, Sequence[Tensor]]]) -> Portion:
    numbers, vectors = zip(*small, strict=True)
    rows = torch.tensor([-(-each[0].numel() // RUN) for each in vectors])
    device = vectors[0][0].device
    # the device is told how many rows there are, or it would be waited for
    owners = torch.tensor(numbers).repeat_interleave(rows).to(device, non_blocking=True)
    return owners, tuple(_filled_up(side) for side in zip(*vectors, strict=True))


def _filled_up(vectors: Sequence[Tensor]) -> Tensor:
    zeros = vectors[0].new_zeros(RUN)
    parts: list[Tensor] = []
    for vector in vectors:
        parts.append(vector)
        if rest := -vector.numel() % RUN:
            parts.append(zeros[:rest])
    return torch.cat(parts).view(-1, RUN)


def row_squares(rows: Tensor) -> Tensor:
    """Return each row's sum of squares, fp64, shape (rows,).

    torch's norms take fp64 sums by converting each element, or add all of them up in one fp32 number: 1e-3
    of 14 million elements' is lost.
    """
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return torch.linalg.vector_norm(rows, dim=1).double().square_()


def squares_of(vectors: Sequence[Tensor]) -> Tensor:
    """Return the sums of squares of flat tensors on one device, fp64, shape (tensors,)."""
    found = torch.zeros(len(vectors), dtype=torch.float64, device=vectors[0].device)
    for owners, (rows,) in portions(vectors, at_once=2**62):
        found.index_add_(0, owners, row_squares(rows))
    return found
