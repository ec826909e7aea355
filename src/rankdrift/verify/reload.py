"""Whether an export computes what the trained model did: its logits against those of the checkpoint.

The export is loaded as a user would, by plain transformers or peft. The other side never sees the export: the
module that was trained is made again from the run's configuration, and filled from the shards by the names
the parameters had in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rankdrift.errors import IntegrityError
from rankdrift.export.expected_parameters import ADAPTER_CONFIG, label_count, loaded, trained_module
from rankdrift.layout import INITIAL_ADAPTER
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, open_checkpoint

TOKENS = 16
ROUNDING = 1e-4
"""Relative to the largest logit: fp32 sums of a few thousand terms in another order, layer after layer."""


@dataclass(frozen=True)
class Exported:
    """An export, and what it was made from."""

    folder: Path
    checkpoint: Path
    model: Path
    """The run's configuration."""
    base: Path
    dtype: torch.dtype
    """Of the exported weights."""
    merged: bool
    """Whether a LoRA run was exported as a whole model."""


def compare(exported: Exported) -> str:
    """Return the largest difference of two logits, in a sentence; raise IntegrityError beyond rounding.

    Both models compute in fp32. Weights are rounded to the export's dtype on both sides, except those of a
    merged model, which exist nowhere else: their rounding is part of the difference, and of what is allowed.
    """
    stored = open_checkpoint(exported.checkpoint)
    labels = label_count({name: tensor.shape for name, tensor in stored.tensors.items()})
    expected = _logits(_trained(exported, stored, labels))
    found = _logits(_loaded(exported, labels))
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    allowed = largest * (max(ROUNDING, 8 * torch.finfo(exported.dtype).eps) if exported.merged else ROUNDING)
    figures = f"difference {difference:.3g}, largest logit {largest:.3g}, rounding may make {allowed:.3g}"
    if not difference <= allowed:  # NaN, too
        raise IntegrityError(
            f"{exported.folder}: its logits are not the trained model's: {figures}; export again"
        )
    return figures


def _trained(exported: Exported, stored: ShardedCheckpoint, labels: int) -> nn.Module:
    module = trained_module(exported.model, exported.base, labels)
    dtype = torch.float32 if exported.merged else exported.dtype
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in stored.tensors:
                parameter.copy_(stored.tensor(name).to(dtype))
    if (exported.model / INITIAL_ADAPTER).is_dir():
        _take_out(module, exported.model / INITIAL_ADAPTER)
    return module


def _take_out(module: nn.Module, initial: Path) -> None:
    """Subtract the adapter as it was before training from the base weights, as training did."""
    begun = load_file(initial / "adapter_model.safetensors")
    layer: Any
    with torch.no_grad():
        for name, layer in module.named_modules():
            a, b = (begun.get(f"{name}.lora_{factor}.weight") for factor in "AB")
            if a is not None and b is not None:
                change = layer.scaling["default"] * (b @ a)
                layer.get_base_layer().weight.sub_(change.T if layer.fan_in_fan_out else change)


def _loaded(exported: Exported, labels: int) -> Any:
    if not (exported.folder / ADAPTER_CONFIG).is_file():
        return loaded(exported.folder, labels)
    from peft import PeftModel

    options = {"num_labels": labels} if labels else {}
    base = loaded(exported.base, labels, **options)
    try:
        return PeftModel.from_pretrained(base, str(exported.folder)).eval()
    except Exception as error:  # damage makes peft raise anything
        raise IntegrityError(
            f"{exported.folder}: peft cannot load it ({error}); export the step again"
        ) from error


def _logits(model: Any) -> Tensor:
    """Return the logits of a fixed row of tokens, in fp32; one row needs no padding token."""
    tokens = torch.arange(TOKENS).view(1, -1) % model.config.vocab_size
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens).logits.float()
    return logits
