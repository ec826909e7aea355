"""Matrices of a base model with what an adapter makes of them, a few rows at a time.

The sum is made in float64 and rounded to fp32 once. No merged matrix is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from rankdrift.errors import IntegrityError
from rankdrift.export.adapter_update import LowRankUpdate
from rankdrift.export.base_weights import BaseTensor
from rankdrift.zero_checkpoint.storage_sums import StorageSums


@dataclass(frozen=True)
class MergedTensor:
    """W0 + s B A."""

    base: BaseTensor
    update: LowRankUpdate

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both."""
        return self.base.shape

    def sum(self, start: int, stop: int) -> Tensor:
        """Return some rows of W0 + s B A in float64."""
        return self.base.rows(start, stop).double().add_(self.update.rows(start, stop))

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of the merged matrix in float64."""
        return self.sum(start, stop)

    def chunks(self, buffers: Iterator[Tensor], sums: StorageSums | None = None) -> Iterator[Tensor]:
        """Yield the elements in row-major order, flat, in float32; the buffers are not needed."""
        for start, stop in self.base.blocks():
            yield self.rows(start, stop).float().reshape(-1)


@dataclass(frozen=True)
class RescaledTensor(MergedTensor):
    """DoRA's m V / ||V|| with V = W0 + s B A (arXiv 2402.09353): each output has a length of its own."""

    magnitude: Tensor
    """m, one length for each output."""
    outputs: int
    """Which dimension of the weight its outputs are: 0, or 1 where it is stored as its transpose."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of the merged matrix in float64."""
        factors = self.magnitude.double().flatten() / self.lengths
        return self.sum(start, stop) * (factors if self.outputs else factors[start:stop, None])

    @cached_property
    def lengths(self) -> Tensor:
        """||V|| over the inputs of each output, in float64; raises IntegrityError where one is zero."""
        squares = (self.sum(start, stop).square().sum(1 - self.outputs) for start, stop in self.base.blocks())
        parts = list(squares)
        lengths = (torch.stack(parts).sum(0) if self.outputs else torch.cat(parts)).sqrt()
        if not lengths.all():
            raise IntegrityError(
                f"'{self.base.name}': an output of W0 + s B A is zero and has no direction; use another step"
            )
        return lengths


@dataclass(frozen=True)
class ReplacedRows:
    """An embedding of which the rows of some tokens trained."""

    base: BaseTensor
    trained: Mapping[int, Tensor] = field(repr=False)
    """Token -> its row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The embedding's."""
        return self.base.shape

    def chunks(self, buffers: Iterator[Tensor], sums: StorageSums | None = None) -> Iterator[Tensor]:
        """Yield the elements in row-major order, flat, in float32; the buffers are not needed."""
        for start, stop in self.base.blocks():
            rows = self.base.rows(start, stop)
            for token, row in self.trained.items():
                if start <= token < stop:
                    rows[token - start] = row
            yield rows.reshape(-1)
