"""Reading a row's columns: text and labels, checked, with errors that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankdrift.errors import UserError
from rankdrift.tasks import Example


def text(row: Mapping[str, Any], column: str, least: int = 1) -> str:
    """Return a text column without surrounding space; raise UserError where it is no text or is empty.

    With ``least=0`` it may be empty, as single rows of public sets are.
    """
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"column '{column}' must hold text, got {value!r}: correct or remove the row")
    stripped = value.strip()
    if len(stripped) < least:
        raise UserError(f"column '{column}' is empty ({value!r}): correct or remove the row")
    return stripped


def label(row: Mapping[str, Any], column: str, classes: int) -> int:
    """Return a class index; raise UserError where it is not a whole number from 0 to ``classes - 1``."""
    value = row[column]
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        value = int(value)  # of a CSV file
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"column '{column}' must hold a class index, got {value!r} ({type(value).__name__}): "
            f"store labels as whole numbers from 0 to {classes - 1}"
        )
    if not 0 <= value < classes:
        hint = "; a label of -1 marks a split without labels: use another split" if value == -1 else ""
        raise UserError(f"column '{column}' is {value}, expected a label from 0 to {classes - 1}{hint}")
    return value


def named_label(row: Mapping[str, Any], column: str, names: Sequence[Any]) -> int:
    """Return the place of a column's value among the names it may have; UserError where it is none of them.

    A value and a name that are written alike are the same: 1 and "1", and true (of a CSV file) and "true".
    """
    value = row[column]
    written = [str(name) for name in names]
    said = str(value).lower() if isinstance(value, bool) else str(value)
    if said not in written:
        hidden = said in ("", "None", "-1")
        hint = " (it marks a split without labels: use another split)" if hidden else ""
        raise UserError(f"column '{column}' is {value!r}, expected one of {', '.join(written)}{hint}")
    return written.index(said)


def texts(row: Mapping[str, Any], column: str, key: str = "", least: int = 1) -> tuple[str, ...]:
    """Return the texts that a column holds, or a part of it; UserError where they are not so many texts."""
    value = part(row, column, key) if key else row[column]
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    if listed is None or len(listed) < least or not all(isinstance(of, str) for of in listed):
        where = f"column '{column}'" + (f", '{key}'," if key else "")
        raise UserError(f"{where} must hold a list of texts, got {value!r}: correct or remove the row")
    return tuple(listed)


def part(row: Mapping[str, Any], column: str, key: str) -> Any:
    """Return a part of a column that holds several; UserError where it is not there."""
    value = row[column]
    if not isinstance(value, Mapping) or key not in value:
        raise UserError(f"column '{column}' must hold '{key}', got {value!r}: correct or remove the row")
    return value[key]


def classified(prompt: str, row: Mapping[str, Any], choices: tuple[str, ...]) -> Example:
    """Return the example of a classification row whose class index is in the column ``label``."""
    index = label(row, "label", len(choices))
    return Example(prompt=prompt, target=choices[index], label=index)


def chosen(prompt: str, choices: Sequence[str], right: int) -> Example:
    """Return the example of a row with choices of its own, each behind the prompt and a space."""
    spaced = tuple(f" {choice}" for choice in choices)
    if not 0 <= right < len(spaced):
        raise UserError(f"the right answer is number {right} of {len(spaced)} choices; correct the row")
    return Example(prompt=prompt, target=spaced[right], label=right, choices=spaced)


def answered(prompt: str, reference: str, group: str = "") -> Example:
    """Return the example of a row whose answer is a text."""
    return Example(prompt=prompt, target=f" {reference}", references=(reference,), group=group)
