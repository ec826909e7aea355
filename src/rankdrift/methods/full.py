"""Full fine-tuning: every parameter trains, or all but some kinds; the export is a whole model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rankdrift.methods import Method, save_model_config
from rankdrift.methods._subset import train_only
from rankdrift.models.families import cell_of
from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = {"embeddings": "embed", "norms": "norm", "head": "head"}
"""What may stay frozen -> its group in ``models.families``."""


class Settings(MethodSpec):
    """Settings of full fine-tuning."""

    name: str = "full"
    freeze: tuple[Literal["embeddings", "norms", "head"], ...] = ()
    """Kinds of parameters that do not train; a head that shares the embedding's weight is frozen with it."""

    def in_force(self) -> dict[str, Any]:
        """Return the settings, without those that are not made use of."""
        return {key: value for key, value in super().in_force().items() if key != "freeze" or value}


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with every parameter trainable but those that are to stay frozen."""
    frozen = {KINDS[kind] for kind in settings.freeze}
    return train_only(model, lambda name: cell_of(name).group not in frozen, "method.freeze")


METHOD = Method(
    name="full",
    settings=Settings,
    prepare=prepare,
    save_config=save_model_config,
    adapted=lambda model: [],
    exclude_frozen=False,
    learning_rate=2e-5,
)
