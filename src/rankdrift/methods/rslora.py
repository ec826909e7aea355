"""Rank-stabilised LoRA: W = W0 + (alpha / sqrt r) B A (Kalajdzievski, arXiv 2312.03732), through PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.methods import Method, lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(lora.Settings):
    """Settings of rank-stabilised LoRA: those of LoRA, but that alpha is divided by the root of r."""

    name: str = "rslora"


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with adapters, as LoRA's."""
    return lora.prepare(model, settings, base, use_rslora=True)


METHOD = Method(
    name="rslora",
    settings=Settings,
    prepare=prepare,
    save_config=lora.save_config,
    adapted=lora.adapted_modules,
    exclude_frozen=True,
)
