"""Load a consolidated checkpoint the way a user would: with plain transformers, or peft on its base."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rankdrift.errors import UserError
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec


def load_export(
    export: Path, base: Path, spec: ModelSpec, num_labels: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel | PeftModel:
    """Return the model of an export folder in evaluation mode: a model folder, or an adapter on its base."""
    if (export / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(load_model(base, spec, num_labels, dtype), str(export)).eval()
    if (export / "config.json").is_file():
        return load_model(export, spec, num_labels, dtype).eval()
    raise UserError(f"{export}: neither config.json nor adapter_config.json; run 'rankdrift consolidate'")
