"""The last blocks train, with the final norm and a head of its own; what comes before them is frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.errors import UserError
from rankdrift.methods import full
from rankdrift.methods._subset import train_only
from rankdrift.models.families import OUTSIDE, cell_of
from rankdrift.settings import PositiveInt
from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(MethodSpec):
    """Settings of training the last blocks."""

    name: str = "last_layers"
    last: PositiveInt = 2
    """How many blocks train."""


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with its last blocks, its final norm and its head trainable.

    A head that shares the embedding's weight stays frozen with it. Raises UserError where there are not so
    many blocks.
    """
    cells = {name: cell_of(name) for name, _ in model.named_parameters()}
    blocks = 1 + max(cell.layer for cell in cells.values())
    if settings.last > blocks:
        raise UserError(
            f"method.last={settings.last}: {type(model).__name__} has {blocks} blocks; give at most that"
        )

    def wanted(name: str) -> bool:
        cell = cells[name]
        return cell.layer >= blocks - settings.last or (
            cell.layer == OUTSIDE and cell.group in ("norm", "head")
        )

    return train_only(model, wanted, "method.last")


METHOD = replace(full.METHOD, name="last_layers", settings=Settings, prepare=prepare)
