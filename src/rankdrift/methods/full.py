"""Full fine-tuning: every parameter trains; the export is a whole model folder."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from rankdrift.methods import Method
from rankdrift.spec import MethodSpec


def prepare(model: PreTrainedModel, spec: MethodSpec, base: Path) -> PreTrainedModel:
    """Return the model with every parameter trainable."""
    return model.requires_grad_(True)


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and, for a generating model, generation_config.json."""
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


METHOD = Method(name="full", prepare=prepare, save_config=save_config, exclude_frozen=False)
