"""A whole model from a base model and a LoRA adapter: W0 + s B A, computed where the file is written.

Weights are rounded to fp32 once (``merged_tensors.py``); a narrower dtype rounds that, as for weights that
were trained whole.

A tied head follows the embedding only as long as neither is adapted. Where one is, the trained model used
two different matrices, so both are written and the configuration is told that they are not tied (PEFT's
own merge changes the head as well). Rows of tokens that train are those of the head, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.export import adapter_update
from rankdrift.export.base_weights import BaseTensor, open_base
from rankdrift.export.initial_adapter import JoinedFactor
from rankdrift.export.merged_tensors import MergedTensor, ReplacedRows, RescaledTensor
from rankdrift.zero_checkpoint.shards import ShardedTensor

Stored = ShardedTensor | JoinedFactor
Mergeable = BaseTensor | MergedTensor | ReplacedRows | Stored
Merge = Callable[[BaseTensor], MergedTensor | ReplacedRows]
"""What becomes of a base model's matrix."""
KNOWN_VARIANTS = ("use_dora", "peft_type", "trainable_token_indices")


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
    merges, rows = _merges(adapter, config, settings), _token_rows(adapter, config, settings)
    whole = {
        name.removeprefix(adapter_update.PREFIX): adapter[name]
        for name in adapter
        if ".lora_" not in name and not name.endswith(adapter_update.TOKEN_ROWS)
    }
    changed = merges.keys() | whole.keys()
    if unknown := sorted((changed | rows.keys()) - set(model.names)):
        raise UserError(f"{base}: the model has no weight '{unknown[0]}', which the adapter changes")
    untied = tuple(alias for alias, owner in model.tied.items() if changed & {alias, owner})
    stored = open_base(base)
    tensors: dict[str, Mergeable] = {}
    for name in model.names:
        if name in whole:
            tensors[name] = whole[name]
        elif name in untied or name not in model.tied:
            owner = model.tied.get(name, name)
            tensors[name] = _merged(stored, owner, merges.get(name) or rows.get(owner), base)
    return MergedModel(tensors, untied)


def _merges(adapter: Mapping[str, Stored], config: Mapping[str, Any], settings: Path) -> dict[str, Merge]:
    """Return what the factors make, by the names of the weights they belong to."""
    adapter_update.check(config, settings, KNOWN_VARIANTS)
    found: dict[str, Merge] = {}
    turned = bool(config.get("fan_in_fan_out"))
    for module, factors in adapter_update.factors(adapter, config, settings).items():
        a, b = adapter[factors.a].load(), adapter[factors.b].load()
        if factors.e:
            b = b.double() * adapter[factors.e].load().double().T  # no third rounding
        scale = adapter_update.scaling(config, module, a.shape[0], settings)
        update = adapter_update.update_of(factors, a, b, scale, turned)
        found[f"{module}.weight"] = partial(MergedTensor, update=update)
        if factors.magnitude:
            lengths, outputs = adapter[factors.magnitude].load(), int(factors.embedding or turned)
            found[f"{module}.weight"] = partial(
                RescaledTensor, update=update, magnitude=lengths, outputs=outputs
            )
    return found


def _token_rows(adapter: Mapping[str, Stored], config: Mapping[str, Any], settings: Path) -> dict[str, Merge]:
    """Return which rows are replaced, by the names of the embeddings they are of."""
    found: dict[str, Merge] = {}
    for module, (name, tokens) in adapter_update.token_rows(adapter, config, settings).items():
        rows = adapter[name].load()
        if len(rows) != len(tokens):
            raise IntegrityError(
                f"{settings}: trainable_token_indices names {len(tokens)} tokens, of which {len(rows)} rows "
                "are stored; use another step"
            )
        found[f"{module}.weight"] = partial(ReplacedRows, trained=dict(zip(tokens, rows, strict=True)))
    return found


def _merged(stored: Mapping[str, BaseTensor], name: str, merge: Merge | None, base: Path) -> Mergeable:
    if name not in stored:
        raise UserError(f"{base}: its weights hold no '{name}'; save the base model with save_pretrained")
    if merge is None:
        return stored[name]
    merged = merge(stored[name])
    if isinstance(merged, MergedTensor) and merged.update.shape != merged.shape:
        raise UserError(
            f"{base}: '{name}' is {merged.shape}, the adapter's update {merged.update.shape}; the adapter "
            "belongs to another base model"
        )
    return merged
