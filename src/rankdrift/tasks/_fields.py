"""Reading a row's columns: text and labels, checked, with errors that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.errors import UserError
from rankdrift.tasks import Example


def text(row: Mapping[str, Any], column: str) -> str:
    """Return a text column without surrounding space; raise UserError where it is not text or is empty."""
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"column '{column}' must hold text, got {value!r}: correct or remove the row")
    stripped = value.strip()
    if not stripped:
        raise UserError(f"column '{column}' is empty ({value!r}): correct or remove the row")
    return stripped


def label(row: Mapping[str, Any], column: str, classes: int) -> int:
    """Return a class index; raise UserError where it is not a whole number from 0 to ``classes - 1``."""
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"column '{column}' must hold a class index, got {value!r} ({type(value).__name__}): "
            f"store labels as whole numbers from 0 to {classes - 1}"
        )
    if not 0 <= value < classes:
        hint = "; a label of -1 marks a split without labels: use another split" if value == -1 else ""
        raise UserError(f"column '{column}' is {value}, expected a label from 0 to {classes - 1}{hint}")
    return value


def classified(prompt: str, row: Mapping[str, Any], choices: tuple[str, ...]) -> Example:
    """Return the example of a classification row whose class index is in the column ``label``."""
    index = label(row, "label", len(choices))
    return Example(prompt=prompt, target=choices[index], label=index)
