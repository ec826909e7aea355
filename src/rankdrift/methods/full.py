"""Full fine-tuning: every parameter trains; the export is a whole model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.methods import Method, save_model_config
from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(model: PreTrainedModel, settings: MethodSpec, base: Path) -> PreTrainedModel:
    """Return the model with every parameter trainable."""
    return model.requires_grad_(True)


METHOD = Method(
    name="full",
    settings=MethodSpec,
    prepare=prepare,
    save_config=save_model_config,
    adapted=lambda model: [],
    exclude_frozen=False,
)
