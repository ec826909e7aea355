"""Methods that train some of a model's own parameters: the export is a whole model folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rankdrift.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_only(model: PreTrainedModel, wanted: Callable[[str], bool], setting: str) -> PreTrainedModel:
    """Return the model with some parameters trainable, by name, and what is new in it; all else frozen.

    A new classification head has no pre-trained counterpart: frozen it would be noise. Raises UserError,
    naming the setting, where nothing but that would train.
    """
    chosen = {name for name, _ in model.named_parameters() if wanted(name)}
    if not chosen:
        raise UserError(f"{setting} leaves nothing of {type(model).__name__} to train; choose otherwise")
    new = tuple(f"{module}." for module in getattr(model, "new_modules", ()))
    for name, param in model.named_parameters():
        param.requires_grad_(name in chosen or name.startswith(new))
    return model
