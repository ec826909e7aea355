"""LoRA+: LoRA whose B learns faster than its A (Hayou et al., arXiv 2402.12354)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from rankdrift.methods import lora
from rankdrift.models.families import cell_of


class Settings(lora.Settings):
    """Settings of LoRA+."""

    name: str = "lora_plus"
    ratio: Annotated[float, Field(ge=1)] = 16.0
    """The learning rate of B over that of A, which is ``training.learning_rate``."""


def rate(name: str, settings: Settings) -> float:
    """Return the factor of a parameter's learning rate."""
    return settings.ratio if cell_of(name).factor == "B" else 1.0


METHOD = replace(lora.METHOD, name="lora_plus", settings=Settings, rate=rate)
