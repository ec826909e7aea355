"""Adapters whose start, s B0 A0, is taken out of the base weights, so that the model begins as the base.

The export is plain LoRA of the base as everybody has it (``export/initial_adapter.py``). A run that resumes
begins from the start that was kept, not from another decomposition, whose last bits a machine decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankdrift import files
from rankdrift.errors import IntegrityError
from rankdrift.methods import lora

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(lora.Settings):
    """Settings of LoRA, whose alpha is r by default: the start is scaled so that it does not matter."""

    alpha_over_rank: ClassVar[float] = 1.0

    @property
    def adapter_rank(self) -> int:
        """The rank that bounds B A - B0 A0."""
        return 2 * super().adapter_rank


def take_up(model: PreTrainedModel, settings: Settings, base: Path, start: Path) -> PreTrainedModel:
    """Return the model as ``prepare`` gave it when the run began, from the adapter that was kept then."""
    from safetensors.torch import load_file

    prepared = lora.prepare(model, settings, base, init_lora_weights=False)
    if unexpected := begin(prepared, load_file(start / "adapter_model.safetensors")):
        raise IntegrityError(f"{start}: '{unexpected[0]}' is of another adapter; restore the folder")
    stated = files.read_json(start / "adapter_config.json")["init_lora_weights"]
    config: Any = prepared.peft_config["default"]
    config.init_lora_weights = stated  # what says that the base has been changed
    return prepared


def begin(prepared: PreTrainedModel, start: dict[str, Tensor]) -> list[str]:
    """Give an adapter the values it begins with, and take s B0 A0 out of the base weights.

    Returns the names, on disk, that the adapter has no place for.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from peft.utils import set_peft_model_state_dict

    told: Any = set_peft_model_state_dict(prepared, start)
    layers: list[Any] = [layer for layer in prepared.modules() if isinstance(layer, LoraLayer)]
    with torch.no_grad():
        for layer in (layer for layer in layers if "default" in layer.lora_A):
            change = (
                layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            )
            layer.get_base_layer().weight.sub_(change.T if layer.fan_in_fan_out else change)
    return list(told.unexpected_keys)
