"""PiSSA: LoRA from the leading singular directions of W0 (Meng et al., arXiv 2404.02948), through PEFT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.methods import _subtracted, lora
from rankdrift.settings import NonNegativeInt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(_subtracted.Settings):
    """Settings of PiSSA."""

    name: str = "pissa"
    iterations: NonNegativeInt = 16
    """Subspace iterations of a fast decomposition; 0 is an exact one, minutes for large models."""


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with adapters of its leading singular directions, the weights having the rest."""
    kind = f"pissa_niter_{settings.iterations}" if settings.iterations else "pissa"
    return lora.prepare(model, settings, base, init_lora_weights=kind)


METHOD = replace(
    lora.METHOD,
    name="pissa",
    settings=Settings,
    prepare=prepare,
    learning_rate=2e-5,
    take_up=_subtracted.take_up,
)
