"""OLoRA: LoRA from the QR decomposition of W0 (Büyükakyüz, arXiv 2406.01775), through PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.methods import Method, _subtracted, lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(_subtracted.Settings):
    """Settings of OLoRA."""

    name: str = "olora"


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with adapters from a QR decomposition of its weights, which have the rest."""
    return lora.prepare(model, settings, base, init_lora_weights="olora")


METHOD = Method(
    name="olora",
    settings=Settings,
    prepare=prepare,
    save_config=lora.save_config,
    adapted=lora.adapted_modules,
    exclude_frozen=True,
    take_up=_subtracted.take_up,
)
