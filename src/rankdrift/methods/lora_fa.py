"""LoRA-FA: A stays as it was drawn, B alone trains (Zhang et al., arXiv 2308.03303)."""

from __future__ import annotations

from dataclasses import replace

from rankdrift.methods import lora
from rankdrift.models.families import cell_of


class Settings(lora.Settings):
    """Settings of LoRA-FA: those of LoRA."""

    name: str = "lora_fa"


def rests(name: str, settings: Settings) -> bool:
    """Return whether a parameter is an A, which rests at every step: a checkpoint has it for the export."""
    return cell_of(name).factor == "A"


METHOD = replace(lora.METHOD, name="lora_fa", settings=Settings, rests=rests)
