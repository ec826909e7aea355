"""LoRA-FA: A stays as it was drawn, B alone trains (Zhang et al., arXiv 2308.03303)."""

from __future__ import annotations

from rankdrift.methods import Method, lora
from rankdrift.models.families import cell_of


class Settings(lora.Settings):
    """Settings of LoRA-FA: those of LoRA."""

    name: str = "lora_fa"


def rests(name: str, settings: Settings) -> bool:
    """Return whether a parameter is an A, which rests at every step: a checkpoint has it for the export."""
    return cell_of(name).factor == "A"


METHOD = Method(
    name="lora_fa",
    settings=Settings,
    prepare=lora.prepare,
    save_config=lora.save_config,
    adapted=lora.adapted_modules,
    exclude_frozen=True,
    rests=rests,
)
