"""BitFit: biases alone train (Ben Zaken et al., arXiv 2106.10199); norms' weights as well where asked to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.errors import UserError
from rankdrift.methods import full
from rankdrift.methods._subset import train_only
from rankdrift.models.families import cell_of
from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(MethodSpec):
    """Settings of BitFit."""

    name: str = "bitfit"
    norms: bool = False
    """Whether the weights of norms train too: models of Llama's kind have no biases."""


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with its biases trainable; raise UserError where nothing is."""
    names = [name for name, _ in model.named_parameters()]
    if not settings.norms and not any(name.endswith(".bias") for name in names):
        raise UserError(
            f"method.name=bitfit: {type(model).__name__} has no biases; train the weights of its norms "
            "(method.norms=true), or choose another method"
        )

    def wanted(name: str) -> bool:
        return name.endswith(".bias") or (settings.norms and cell_of(name).group == "norm")

    return train_only(model, wanted, "method.norms")


METHOD = replace(full.METHOD, name="bitfit", settings=Settings, prepare=prepare, learning_rate=2e-4)
