"""A whole model from a base model and a LoRA adapter: W0 + s B A, computed where the file is written.

The sum is made in float64 and rounded to fp32 once; a narrower dtype rounds that, as for weights that
were trained whole. No merged matrix is ever in memory: a few rows at a time are.

A tied head follows the embedding only as long as neither is adapted. Where one is, the trained model used
two different matrices, so both are written and the configuration is told that they are not tied (PEFT's
own merge changes the head as well).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankdrift.errors import UserError
from rankdrift.export import adapter_update
from rankdrift.export.base_weights import BaseTensor, open_base
from rankdrift.export.initial_adapter import JoinedFactor
from rankdrift.zero_checkpoint.shards import ShardedTensor
from rankdrift.zero_checkpoint.storage_sums import StorageSums


@dataclass(frozen=True)
class MergedTensor:
    """A matrix of the base model with an adapter's update."""

    base: BaseTensor
    update: adapter_update.LowRankUpdate

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both."""
        return self.base.shape

    def chunks(self, buffers: Iterator[Tensor], sums: StorageSums | None = None) -> Iterator[Tensor]:
        """Yield the elements in row-major order, flat, in float32; the buffers are not needed."""
        for start, stop in self.base.blocks():
            merged = self.base.rows(start, stop).double().add_(self.update.rows(start, stop))
            yield merged.float().reshape(-1)


Stored = ShardedTensor | JoinedFactor
Mergeable = BaseTensor | MergedTensor | Stored


@dataclass(frozen=True)
class Architecture:
    """What a model's class says of its parameters."""

    names: tuple[str, ...]
    """All parameters and persistent buffers."""
    tied: Mapping[str, str]
    """Parameters that are another one by configuration, to that one: ``lm_head.weight`` of a tied model."""


@dataclass(frozen=True)
class MergedModel:
    """The tensors of a merged model, by their names in the model's file."""

    tensors: Mapping[str, Mergeable]
    untied: tuple[str, ...]
    """Names that the base model ties to another and the merged one must not."""


def architecture(config_folder: Path, task: str | None) -> Architecture:
    """Return the parameters of the model class that PEFT's ``task_type`` names; nothing is allocated."""
    # These imports take seconds, and plain consolidation does without them.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    classes = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}
    if task not in classes:
        raise UserError(f"adapter of task_type {task!r}: not merged; known: {', '.join(classes)}")
    try:
        config = AutoConfig.from_pretrained(config_folder)
        with torch.device("meta"):
            model = classes[task].from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{config_folder}: its config.json makes no model ({error}); restore it") from None
    return Architecture(tuple(model.state_dict()), dict(model.all_tied_weights_keys))


def merged_model(
    adapter: Mapping[str, Stored], config: Mapping[str, Any], settings: Path, base: Path, model: Architecture
) -> MergedModel:
    """Plan the merge of an adapter into a base model's folder; no weight is read but the factors.

    ``adapter`` holds its tensors by their names on disk, ``config`` its settings, which are from the file
    ``settings``. Raises UserError, naming the tensor or the setting, for what cannot be merged exactly.
    """
    updates = _updates(adapter, config, settings)
    whole = {
        name.removeprefix(adapter_update.PREFIX): adapter[name] for name in adapter if ".lora_" not in name
    }
    changed = updates.keys() | whole.keys()
    if unknown := sorted(changed - set(model.names)):
        raise UserError(f"{base}: the model has no weight '{unknown[0]}', which the adapter changes")
    untied = tuple(alias for alias, owner in model.tied.items() if changed & {alias, owner})
    stored = open_base(base)
    tensors: dict[str, Mergeable] = {}
    for name in model.names:
        if name in whole:
            tensors[name] = whole[name]
        elif name in untied or name not in model.tied:
            tensors[name] = _merged(stored, model.tied.get(name, name), updates.get(name), base)
    return MergedModel(tensors, untied)


def _updates(
    adapter: Mapping[str, Stored], config: Mapping[str, Any], settings: Path
) -> dict[str, adapter_update.LowRankUpdate]:
    """Return the updates by the names of the weights they belong to."""
    adapter_update.check(config, settings)
    found = {}
    for module, factors in adapter_update.factors(adapter, config, settings).items():
        a, b = adapter[factors.a].load(), adapter[factors.b].load()
        scale = adapter_update.scaling(config, module, a.shape[0], settings)
        turned = bool(config.get("fan_in_fan_out"))
        found[f"{module}.weight"] = adapter_update.update_of(factors, a, b, scale, turned)
    return found


def _merged(
    stored: Mapping[str, BaseTensor], name: str, update: adapter_update.LowRankUpdate | None, base: Path
) -> BaseTensor | MergedTensor:
    if name not in stored:
        raise UserError(f"{base}: its weights hold no '{name}'; save the base model with save_pretrained")
    if update is None:
        return stored[name]
    if update.shape != stored[name].shape:
        raise UserError(
            f"{base}: '{name}' is {stored[name].shape}, the adapter's update {update.shape}; the adapter "
            "belongs to another base model"
        )
    return MergedTensor(stored[name], update)
