"""DoRA: each output of W0 + s B A gets a length of its own, which trains (Liu et al., arXiv 2402.09353)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.methods import Method, lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(lora.Settings):
    """Settings of DoRA: those of LoRA."""

    name: str = "dora"


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with adapters and the lengths of its weights, so that it starts as the base."""
    return lora.prepare(model, settings, base, use_dora=True)


METHOD = Method(
    name="dora",
    settings=Settings,
    prepare=prepare,
    save_config=lora.save_config,
    adapted=lora.adapted_modules,
    exclude_frozen=True,
)
