"""Models with their heads, float32, in evaluation mode, and which of their parameters training changes.

A LoRA adapter is merged, W = W0 + s B A, so that the gradient with respect to W is that of the full weight;
those of its factors follow from it by the chain rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from rankdrift.analysis.sources.adapters import Adapter
from rankdrift.analysis.sources.folders import adapter_tensors, config_folder, is_adapter, model_tensors
from rankdrift.analysis.sources.models import filled
from rankdrift.analysis.sources.weights import TunedWeights, open_weights
from rankdrift.errors import NotApplicableError, UserError
from rankdrift.export import adapter_update
from rankdrift.models.direction import is_bidirectional

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Space = Literal["weight", "factor", "image"]


@dataclass(frozen=True)
class Factors:
    """LoRA's part of a weight, scale * left @ right, as the weight is stored."""

    left: Tensor
    """(rows, r), float32."""
    right: Tensor
    """(r, columns), float32."""
    scale: float
    names: tuple[str, str]
    """Which factor is left and which is right: B and A, or A and B where the transpose is stored."""

    def gradients(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return s G rightᵀ and s leftᵀ G of each G (..., rows, columns): the factors' own gradients."""
        left, right = self.left.to(gradients), self.right.to(gradients)
        return self.scale * gradients @ right.T, self.scale * left.T @ gradients

    def image(self, gradients: Tensor) -> Tensor:
        """Return the change of W for a change of the factors by their gradients, to first order.

        s (dleft right + left dright) = s² (G rightᵀ right + left leftᵀ G), (..., rows, columns). It depends
        on how large each factor is, as the steps that an optimizer takes in factors do.
        """
        left, right = self.gradients(gradients)
        return self.scale * (left @ self.right.to(gradients) + self.left.to(gradients) @ right)


@dataclass(frozen=True)
class Differentiable:
    """A model with its head, and the parameters that its training changes."""

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    """In the order of the model."""
    factors: Mapping[str, Factors]
    """Of those that plain LoRA changes; none for a whole model, DoRA and AdaLoRA."""
    whole: Collection[str]
    """Those that are saved whole beside such factors: they are the same in every space."""

    def spaces(self, name: str, gradients: Tensor) -> Iterator[tuple[Space, str, Tensor]]:
        """Yield (space, factor, gradients (shards, elements)) from those of a parameter, (shards, *shape)."""
        yield "weight", "", gradients.flatten(1)
        if name in self.factors:
            factors = self.factors[name]
            for factor, values in zip(factors.names, factors.gradients(gradients), strict=True):
                yield "factor", factor, values.flatten(1)
            yield "image", "", factors.image(gradients).flatten(1)
        elif name in self.whole:
            yield "factor", "", gradients.flatten(1)
            yield "image", "", gradients.flatten(1)


def open_model(
    base: Path, tuned: Path | None, classifies: bool, initial: Path | None = None
) -> Differentiable:
    """Return a tuned model (or the base) with its head, float32, in evaluation mode; an adapter is merged.

    Its parameters are all of a whole model's, and those alone that an adapter changes. Where a configuration
    names a padding token, its row of the embedding has no gradient, as in training, and none reaches the
    factors through it. ``initial`` is the adapter before training, as ``open_weights`` takes it.

    Raises
    ------
    UserError
        If it cannot be loaded, has no head of the kind asked for, or the adapter does not fit the base.

    """
    if tuned is not None and is_adapter(tuned):
        weights = open_weights(base, tuned, initial)
        return _adapted(weights, _merged(weights, classifies))
    folder = tuned or base
    tensors = model_tensors(folder)
    model = _headed(folder, {name: tensors.tensor(name) for name in tensors.names}, classifies)
    return Differentiable(model, dict(model.named_parameters()), factors={}, whole=())


def has_classifier(tuned: Path) -> bool:
    """Return whether a tuned model's folder, or an adapter's, holds a classification head."""
    tensors = adapter_tensors(tuned) if is_adapter(tuned) else model_tensors(tuned)
    return any(map(_classifies, tensors.names))


def _headed(folder: Path, weights: dict[str, Tensor], classifies: bool) -> PreTrainedModel:
    """Return a folder's architecture with the head asked for, filled with weights."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoConfig,
    )

    mapping = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if classifies else MODEL_FOR_CAUSAL_LM_MAPPING
    settings = config_folder(folder)
    try:
        config = AutoConfig.from_pretrained(settings)
        if not classifies:
            _require_causal(folder, config)
        if classifies and (heads := sorted(filter(_classifies, weights))):
            config.num_labels = weights[heads[-1]].shape[0]  # of two layers, dense and out_proj, the second
        model, info = filled(mapping[type(config)], config, weights)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded ({error}); is it a complete model folder?") from None
    if odd := [*info["missing_keys"], *filter(_classifies, info["unexpected_keys"])]:
        head = "a classification head" if classifies else "an LM head"
        raise UserError(
            f"{folder}: {', '.join(sorted(odd)[:3])} missing in it or foreign to {type(model).__name__}: the "
            f"rows' labels are for {head}; give labels for its own head, or export it again"
        )
    model.name_or_path = str(folder)  # for messages
    if classifies:  # rows end in the last column, where no padding is, whatever token they end with
        model.config.pad_token_id = -1
    return model.eval()


def _require_causal(folder: Path, config: PreTrainedConfig) -> None:
    """Raise NotApplicableError where a token's state is computed from those after it, which are predicted.

    Transformers gives such models an LM head, too, with a warning.
    """
    if is_bidirectional(config):
        raise NotApplicableError(
            f"{folder}: a model of type {config.model_type!r} sees the tokens it would predict, so it has no "
            "next-token gradients; name the other analyses, or give rows with classes"
        )


def _classifies(name: str) -> bool:
    """Return whether a tensor is a classification head's."""
    return not {"score", "classifier"}.isdisjoint(name.split("."))


def _merged(weights: TunedWeights, classifies: bool) -> PreTrainedModel:
    """Return the base model with W0 + dW, and the adapter's own head where it has one."""
    adapter = weights.adapter
    assert adapter is not None, "only an adapter is merged"
    stored = model_tensors(weights.base.folder)
    base = {name: stored.tensor(name) for name in stored.names}
    changed = dict(weights.merged())
    new = {name: adapter.tensors.tensor(key) for name, key in adapter.replaced.items()}
    model = _headed(weights.base.folder, new | base | changed, classifies)
    model.name_or_path = str(weights.folder)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    for name in changed:
        if head is not None and head.weight is embedding and _own(model, name)[1] is embedding:
            # PEFT's adapter is on the embedding alone: the head that is tied to it stays what it was
            head.weight = nn.Parameter(base[name])
    return model


def _own(model: PreTrainedModel, name: str) -> tuple[str, nn.Parameter | None]:
    """Return a parameter and its name in the model; folders of a backbone alone lack the prefix."""
    own = dict(model.named_parameters())
    full = name if name in own else f"{model.base_model_prefix}.{name}"
    return full, own.get(full)


def _adapted(weights: TunedWeights, model: PreTrainedModel) -> Differentiable:
    from transformers.pytorch_utils import Conv1D

    adapter = weights.adapter
    assert adapter is not None, "only an adapter has factors"
    if adapter.token_rows:
        raise NotApplicableError(
            f"{weights.folder}: trains some rows of {', '.join(adapter.token_rows)}, of which no "
            "gradients are taken; name the other analyses"
        )
    modules = {_changed(weights, model, f"{module}.weight"): module for module in adapter.factored}
    whole = [_changed(weights, model, name) for name in adapter.replaced]
    parameters = {name: p for name, p in model.named_parameters() if name in modules or name in whole}
    if any(stored.magnitude or stored.e for stored in adapter.factored.values()):
        return Differentiable(model, parameters, factors={}, whole=())
    turned = {name: isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D) for name in modules}
    factors = {name: _factors(adapter, module, turned[name]) for name, module in modules.items()}
    return Differentiable(model, parameters, factors, whole)


def _changed(weights: TunedWeights, model: PreTrainedModel, name: str) -> str:
    full, parameter = _own(model, name)
    if parameter is None:
        raise UserError(
            f"{weights.folder}: changes {name}, which {type(model).__name__} in {weights.base.folder} does "
            "not have as a parameter of its own; merge it in float32, give that folder"
        )
    return full


def _factors(adapter: Adapter, module: str, turned: bool) -> Factors:
    stored = adapter.factored[module]
    a, b = adapter.tensors.tensor(stored.a), adapter.tensors.tensor(stored.b)
    scale = adapter_update.scaling(adapter.config, module, a.shape[0], adapter.config_path)
    update = adapter_update.update_of(stored, a, b, scale, turned)
    names = ("A", "B") if stored.embedding or turned else ("B", "A")
    return Factors(update.left.float(), update.right.float(), scale, names)
