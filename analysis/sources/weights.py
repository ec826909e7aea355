"""Weights as exact updates: every matrix of a model beside its base, one in memory at a time.

The update of an adapter is read as its factors and never formed from a merged model: at ||dW|| / ||W|| = 1 %
the difference of weights merged in bfloat16 reads rank 16 as an entropy rank of about 170.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rankdrift import files
from rankdrift.analysis.sources.adapters import Adapter
from rankdrift.analysis.sources.folders import is_adapter, model_config, model_tensors, recorded_base
from rankdrift.analysis.sources.naming import Place, Projection, locate
from rankdrift.analysis.sources.rounding import length_rounding_norm, rounding_norm
from rankdrift.analysis.sources.tensors import TensorFolder, Tensors
from rankdrift.analysis.sources.updates import DenseUpdate, LowRankUpdate, Update, untouched
from rankdrift.errors import IntegrityError, UserError
from rankdrift.models.families import MODULES, OUTSIDE

__all__ = [
    "MODULES",
    "BaseWeights",
    "DenseUpdate",
    "LowRankUpdate",
    "MatrixPair",
    "Projection",
    "TunedWeights",
    "open_weights",
]


@dataclass(frozen=True)
class MatrixPair:
    """A base matrix and its update, (outputs, inputs), whichever way round they are stored."""

    projection: Projection
    base: Tensor
    """W0 (rows, columns), float32."""
    update: Update
    stored_dtype: str = "float32"
    """Format that W, or DoRA's lengths, are stored in ("bfloat16", ...); "float32" for factors alone, whose
    rounding is in proportion to dW."""
    rounding_norm: float = 0.0
    """Expected ||e||_F of the error e that rounding to it left in W; 0 for W in float32 and factors alone."""
    new_rows: int = 0
    """Rows of new tokens that W has and W0 has not; they are left out of the update."""

    @property
    def tuned(self) -> Tensor:
        """W = W0 + dW (rows, columns) in float64."""
        return self.base.double() + self.update.dense()


@dataclass(frozen=True)
class BaseWeights:
    """The matrices of a base model."""

    folder: Path

    @cached_property
    def tensors(self) -> TensorFolder:
        """All stored tensors of the model."""
        return TensorFolder(self.folder)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The model's settings, empty where the folder has none."""
        return model_config(self.folder)

    @cached_property
    def places(self) -> dict[Projection, Place]:
        """Matrix -> where it is stored, in the model's order; raises UserError if there is none, or two."""
        return _places(self.folder, self.tensors, self.config)

    @cached_property
    def names(self) -> dict[Projection, str]:
        """Matrix -> name of the tensor it is in, in the model's order; raises UserError as ``places``."""
        return {projection: place.weight for projection, place in self.places.items()}

    def matrix(self, projection: Projection) -> Tensor:
        """Return W0 (rows, columns) in float32."""
        place = self.places[projection]
        return place.matrix(self.tensors.tensor(place.weight))


@dataclass(frozen=True)
class TunedWeights:
    """A model, an adapter, or a checkpoint of either, beside the base model it was tuned from."""

    base: BaseWeights
    folder: Path
    initial: Path | None = None
    """The adapter before training, of methods that subtract it from the base weights (see ``Adapter``)."""

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter, or None where the folder holds a whole model."""
        return Adapter(self.folder, self.initial) if is_adapter(self.folder) else None

    @cached_property
    def dense(self) -> Tensors:
        """Tensors stored whole: the model's, or those an adapter saved beside its factors."""
        return self.adapter.tensors if self.adapter else model_tensors(self.folder)

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that base and tuned model both have, in the model's order.

        Left out are heads without a counterpart: a new ``score``, or the ``lm_head`` of a base that a
        classifier was made of. An LM head that is the embedding is no matrix of its own, adapted or not.
        """
        return tuple(projection for projection in self.base.places if self._is_shared(projection))

    @cached_property
    def replaced(self) -> dict[Projection, Place]:
        """Matrix -> where it is stored whole; of a model all of them.

        Raises UserError where a block's matrix is in only one of base and tuned model.
        """
        if self.adapter:
            return locate(self.adapter.replaced, self.base.config, self.folder)
        config = model_config(self.folder)
        self._require_same_type(config)
        found = _places(self.folder, self.dense, config or self.base.config)
        differing = sorted(found.keys() ^ self.base.places.keys(), key=lambda projection: projection.order)
        odd = [str(projection) for projection in differing if projection.layer != OUTSIDE]
        if odd:
            raise UserError(
                f"{self.folder}: not tuned from {self.base.folder}: {', '.join(odd[:3])} (of {len(odd)}) "
                "in only one of the two; give the base model it was tuned from"
            )
        return found

    @cached_property
    def factored(self) -> dict[Projection, Place]:
        """Matrix -> the weight, ``<module of the adapter>.weight``, whose factors update it.

        Raises UserError where the base has no such matrix.
        """
        if not self.adapter:
            return {}
        weights = [f"{module}.weight" for module in self.adapter.modules]
        found = locate(weights, self.base.config, self.folder)
        absent = [p for p in found if p not in self.base.places and p.layer != OUTSIDE]
        if absent:
            raise UserError(
                f"{self.folder}: adapts {absent[0]}, absent from {self.base.folder}; give its own base"
            )
        return found

    def pair(self, projection: Projection) -> MatrixPair:
        """Return W0 and its exact update.

        Raises
        ------
        UserError
            Where the tuned model has no such matrix, or one of another shape; rows of new tokens are cut off.
        IntegrityError
            Where a weight is not finite.

        """
        self._require_shared(projection)
        if projection in self.replaced:
            return self._dense_pair(projection)
        base, update = self.base.matrix(projection), self._adapted(projection)
        return MatrixPair(projection, base, update, *self._length_rounding(projection))

    def update(self, projection: Projection) -> Update:
        """Return the exact update alone, and raise, as ``pair`` does; for factors W0 is not read."""
        self._require_shared(projection)
        dense = projection in self.replaced
        return self._dense_pair(projection).update if dense else self._adapted(projection)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (parameter name in the base model, W0 + dW in float32) of every weight an adapter changes.

        Weights without a stored counterpart in the base are left out: new classification heads, and the LM
        head of a model that shares it with the embedding.
        """
        assert self.adapter is not None, "only an adapter is merged; a model folder is complete"
        turned = {place.weight: place.transposed for place in self.base.places.values()}
        for module in self.adapter.modules:
            if name := self._base_name(f"{module}.weight"):
                base = self.base.tensors.tensor(name)
                update = self.adapter.update(
                    module, partial(self.base.tensors.tensor, name), turned.get(name)
                )
                self._require_shape(name, update.shape, base.shape)
                yield name, (base.double() + update.dense()).float()
        for parameter, stored in self.adapter.replaced.items():
            if name := self._base_name(parameter):
                value = self.dense.tensor(stored)
                self._require_shape(name, value.shape, self.base.tensors.shape(name))
                yield name, value

    def vectors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (name in the base, before, after) of every vector that both store; raise as ``pair``."""
        stored = self.adapter.replaced if self.adapter else {name: name for name in self.dense.names}
        for parameter, name in stored.items():
            own = self._base_name(parameter)
            if own is None or len(self.base.tensors.shape(own)) != 1:
                continue
            before, after = self.base.tensors.tensor(own), self.dense.tensor(name)
            self._require_shape(own, after.shape, before.shape)
            yield own, before, after

    def _adapted(self, projection: Projection) -> Update:
        """Return the update that an adapter's factors make; of what it does not name, zero."""
        place = self.base.places[projection]
        shape = self.base.tensors.shape(place.weight)
        if self.adapter is None or projection not in self.factored:
            return place.update(untouched(*shape))
        update = self.adapter.update(
            self._module(projection), partial(self.base.tensors.tensor, place.weight), place.transposed
        )
        self._require_shape(str(projection), update.shape, shape)
        return place.update(update)

    def _length_rounding(self, projection: Projection) -> tuple[str, float]:
        """Return the format of DoRA's lengths or of tokens' rows, and what rounding to it left in dW."""
        if self.adapter and (rows := self.adapter.token_rows.get(self._module(projection))):
            dtype = self.dense.dtype(rows[0])
            return str(dtype).removeprefix("torch."), rounding_norm(self.dense.tensor(rows[0]), dtype)
        stored = self.adapter and self.adapter.factored.get(self._module(projection))
        if not stored or not stored.magnitude:
            return "float32", 0.0
        lengths, dtype = self.dense.tensor(stored.magnitude), self.dense.dtype(stored.magnitude)
        place = self.base.places[projection]
        own = place.matrix(lengths.reshape((1, -1) if place.transposed else (-1, 1)))
        return str(dtype).removeprefix("torch."), length_rounding_norm(own, dtype)

    def _module(self, projection: Projection) -> str:
        """Return the adapter's module that updates a matrix; empty where it has none."""
        found = self.factored.get(projection)
        return found.weight.removesuffix(".weight") if found else ""

    def _dense_pair(self, projection: Projection) -> MatrixPair:
        name, place = self._stored_name(projection), self.replaced[projection]
        base, tuned = self.base.matrix(projection), place.matrix(self.dense.tensor(name))
        rows = len(base)
        new = len(tuned) - rows if projection.module in ("embed_tokens", "lm_head") else 0
        if new > 0:
            tuned = tuned[:rows]
        self._require_shape(str(projection), tuned.shape, base.shape)
        dtype = self.dense.dtype(name)
        return MatrixPair(
            projection,
            base,
            DenseUpdate(tuned.double() - base.double()),
            stored_dtype=str(dtype).removeprefix("torch."),
            rounding_norm=rounding_norm(tuned, dtype),
            new_rows=max(new, 0),
        )

    def _stored_name(self, projection: Projection) -> str:
        """Return the tensor that holds a matrix whole."""
        weight = self.replaced[projection].weight
        return self.adapter.replaced[weight] if self.adapter else weight

    def _is_shared(self, projection: Projection) -> bool:
        if projection.layer != OUTSIDE:
            return True
        if projection not in self.replaced:
            # an adapter leaves what it does not name as it was, but a classifier has no LM head
            task = str(self.adapter.config.get("task_type")) if self.adapter else "CLS"
            return not task.endswith("CLS") or projection.module == "embed_tokens"
        if projection.module != "score":
            return True
        base = self.base.tensors.shape(self.base.names[projection])
        return self.dense.shape(self._stored_name(projection)) == base

    def _require_shared(self, projection: Projection) -> None:
        if projection not in self.projections:
            raise UserError(
                f"{self.folder}: no {projection} beside that of {self.base.folder} to compare with"
            )

    def _require_same_type(self, config: Mapping[str, Any]) -> None:
        kinds = config.get("model_type"), self.base.config.get("model_type")
        if None not in kinds and kinds[0] != kinds[1]:
            raise UserError(
                f"{self.folder}: a model of type {kinds[0]!r}, but {self.base.folder} is {kinds[1]!r}; "
                "give the base model it was tuned from"
            )

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


def open_weights(base: Path, tuned: Path, initial: Path | None = None) -> TunedWeights:
    """Open a tuned model or adapter beside its base; raise UserError unless it fits.

    Reads headers only, and once for an adapter of ours the base's files, whose digest is then kept.

    Parameters
    ----------
    base, tuned
        Folders: of a model, and of a model, an adapter or a sharded checkpoint.
    initial
        The adapter before training, for methods that subtract it from the base weights (PiSSA, OLoRA, CorDA,
        LoRA-GA); by default the folder ``initial_adapter`` in the adapter's own.

    """
    weights = TunedWeights(BaseWeights(base), tuned, initial)
    if weights.adapter:
        _ = weights.adapter.start
        if not weights.adapter.modules and not weights.adapter.replaced:
            raise UserError(f"{tuned}: the adapter holds no tensors; export it again")
    _ = weights.replaced, weights.factored, weights.projections
    if weights.adapter and not weights.replaced and not weights.factored:
        module = next(iter([*weights.adapter.modules, *weights.adapter.replaced]))
        raise UserError(
            f"{tuned}: adapts {module}, and no matrix that is read ({', '.join(MODULES)}, or what other "
            "families call them; a head that is the embedding is none of its own); merge it with peft"
        )
    if weights.adapter:
        _require_recorded_base(base, tuned)
    return weights


def _places(folder: Path, tensors: Tensors, config: Mapping[str, Any]) -> dict[Projection, Place]:
    found = locate(tensors.names, config, folder)
    if all(projection.layer == OUTSIDE for projection in found):
        raise UserError(
            f"{folder}: no matrix of a block (layers.N...{{{','.join(MODULES)}}}.weight, or what GPT-2, "
            "GPT-NeoX, OPT, Phi, BERT call them); other models are not read"
        )
    return found


def _require_recorded_base(base: Path, adapter: Path) -> None:
    """Raise IntegrityError where an adapter of ours records other base weights than those given."""
    recorded = recorded_base(adapter)
    if recorded is None:
        return
    digest = files.weights_digest(base)
    if digest != recorded.digest:
        raise IntegrityError(
            f"{adapter}: trained from {recorded.folder} (digest {recorded.digest[:12]}), but {base} holds "
            f"other weights (digest {digest[:12]}); give the base it was trained from"
        )
