"""Weights as exact updates: every projection of a decoder beside its base, one matrix in memory at a time.

The update of an adapter is read as its factors and never formed from a merged model: at ||dW|| / ||W|| = 1 %
the difference of weights merged in bfloat16 reads rank 16 as an entropy rank of about 170.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from rankdrift.analysis.sources.adapters import Adapter, LowRankUpdate, untouched
from rankdrift.analysis.sources.folders import is_adapter, model_tensors
from rankdrift.analysis.sources.tensors import TensorFolder, Tensors
from rankdrift.errors import UserError

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections of a Llama-like block, in the order of its forward pass."""
PROJECTION = re.compile(rf"(?:^|\.)layers\.(\d+)\.(?:[^.]+\.)*({'|'.join(MODULES)})(?:\.weight)?$")


@dataclass(frozen=True)
class Projection:
    """Which matrix of the model: the block it is in (0-based) and its name there."""

    layer: int
    module: str

    def __str__(self) -> str:
        return f"layer {self.layer} {self.module}"


@dataclass(frozen=True)
class DenseUpdate:
    """dW = W - W0 of full fine-tuning."""

    values: Tensor
    """(rows, columns), float64, in which the difference of float32 weights is exact."""

    def dense(self) -> Tensor:
        """Return dW (rows, columns) in float64."""
        return self.values


@dataclass(frozen=True)
class MatrixPair:
    """A base matrix and its update."""

    projection: Projection
    base: Tensor
    """W0 (rows, columns), float32."""
    update: DenseUpdate | LowRankUpdate

    @property
    def tuned(self) -> Tensor:
        """W = W0 + dW (rows, columns) in float64."""
        return self.base.double() + self.update.dense()


@dataclass(frozen=True)
class BaseWeights:
    """The projections of a base model."""

    folder: Path

    @cached_property
    def tensors(self) -> TensorFolder:
        """All stored tensors of the model."""
        return TensorFolder(self.folder)

    @cached_property
    def names(self) -> dict[Projection, str]:
        """Projection -> tensor name, by layer; raises UserError if the model has none, or two of one name."""
        return projections(self.folder, self.tensors.names)

    def matrix(self, projection: Projection) -> Tensor:
        """Return W0 (rows, columns) in float32."""
        return self.tensors.tensor(self.names[projection])


@dataclass(frozen=True)
class TunedWeights:
    """A model, an adapter, or a checkpoint of either, beside the base model it was tuned from."""

    base: BaseWeights
    folder: Path

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter, or None where the folder holds a whole model."""
        return Adapter(self.folder) if is_adapter(self.folder) else None

    @cached_property
    def dense(self) -> Tensors:
        """Tensors stored whole: the model's, or those an adapter saved beside its factors."""
        return self.adapter.tensors if self.adapter else model_tensors(self.folder)

    @cached_property
    def replaced(self) -> dict[Projection, str]:
        """Projection -> tensor name, of matrices that are stored whole."""
        if self.adapter:
            return _find(self.folder, self.adapter.replaced.values())
        found = projections(self.folder, self.dense.names)
        if set(found) != set(self.base.names):
            odd = sorted(map(str, set(found) ^ set(self.base.names)))
            raise UserError(
                f"{self.folder}: not tuned from {self.base.folder}: {', '.join(odd[:3])} (of {len(odd)}) "
                "in only one of the two; give the base model it was tuned from"
            )
        return found

    @cached_property
    def factored(self) -> dict[Projection, str]:
        """Projection -> module name in the adapter, of matrices that are updated by factors."""
        found = _find(self.folder, self.adapter.factored) if self.adapter else {}
        absent = [projection for projection in found if projection not in self.base.names]
        if absent:
            raise UserError(
                f"{self.folder}: adapts {absent[0]}, absent from {self.base.folder}; give its own base"
            )
        return found

    def pair(self, projection: Projection) -> MatrixPair:
        """Return W0 and its exact update; raise UserError where their shapes differ."""
        base = self.base.matrix(projection)
        return MatrixPair(projection, base, self._update(projection, base))

    def _update(self, projection: Projection, base: Tensor) -> DenseUpdate | LowRankUpdate:
        if projection in self.replaced:
            tuned = self.dense.tensor(self.replaced[projection])
            self._require_shape(str(projection), tuned.shape, base.shape)
            return DenseUpdate(tuned.double() - base.double())
        if self.adapter is None or projection not in self.factored:
            return untouched(*base.shape)
        update = self.adapter.update(self.factored[projection])
        self._require_shape(str(projection), update.shape, base.shape)
        return update

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (parameter name in the base model, W0 + dW in float32) of every weight an adapter changes.

        Weights without a stored counterpart in the base are left out: new classification heads, and the LM
        head of a model that shares it with the embedding.
        """
        assert self.adapter is not None, "only an adapter is merged; a model folder is complete"
        for module in self.adapter.factored:
            if name := self._base_name(f"{module}.weight"):
                base, update = self.base.tensors.tensor(name), self.adapter.update(module)
                self._require_shape(name, update.shape, base.shape)
                yield name, (base.double() + update.dense()).float()
        for parameter, stored in self.adapter.replaced.items():
            if name := self._base_name(parameter):
                value = self.dense.tensor(stored)
                self._require_shape(name, value.shape, self.base.tensors.shape(name))
                yield name, value

    def _require_shape(self, what: str, shape: Sequence[int], base: Sequence[int]) -> None:
        if tuple(shape) != tuple(base):
            raise UserError(
                f"{self.folder}: {what} is {tuple(shape)}, but {tuple(base)} in {self.base.folder}; "
                "give the base model it was tuned from"
            )

    def _base_name(self, parameter: str) -> str | None:
        """Return the base's name of a parameter: backbones saved alone lack the prefix ``model.``."""
        candidates = (parameter, parameter.removeprefix("model."), f"model.{parameter}")
        return next((name for name in candidates if name in self.base.tensors.names), None)


def open_weights(base: Path, tuned: Path) -> TunedWeights:
    """Open a tuned model or adapter beside its base; raise UserError unless it fits. Reads headers only."""
    weights = TunedWeights(BaseWeights(base), tuned)
    if weights.adapter:
        _ = weights.adapter.config
        if not weights.adapter.factored and not weights.adapter.replaced:
            raise UserError(f"{tuned}: the adapter holds no tensors; export it again")
    _ = weights.replaced, weights.factored
    return weights


def projections(folder: Path, names: Iterable[str]) -> dict[Projection, str]:
    """Return the projections among tensor names, by layer and module; raise UserError if there is none."""
    found = _find(folder, names)
    if not found:
        raise UserError(
            f"{folder}: no layers.N...{{{','.join(MODULES)}}}.weight; only Llama-like models are read"
        )
    return dict(sorted(found.items(), key=lambda item: (item[0].layer, MODULES.index(item[0].module))))


def _find(folder: Path, names: Iterable[str]) -> dict[Projection, str]:
    found: dict[Projection, str] = {}
    for name in names:
        match = PROJECTION.search(name)
        if not match:
            continue
        projection = Projection(int(match[1]), match[2])
        if projection in found:
            raise UserError(
                f"{folder}: {name} and {found[projection]} are both {projection}; only one decoder is read"
            )
        found[projection] = name
    return found
