"""Sections of settings: frozen, with no key that is not declared; what is wrong is said of every key at once.

Whatever can be added as one file (a method, an analysis) declares its own section in that file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankdrift.errors import did_you_mean

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def problems(
    error: ValidationError, known: Callable[[Sequence[Any]], Sequence[str]], below: Sequence[str] = ()
) -> list[str]:
    """Return a line for each thing that is wrong: the key, its value and the near miss or the bounds.

    ``known`` returns the keys of the section at a path of keys; ``below`` is the path of what was checked.
    """
    return [_explain(problem, known, below) for problem in error.errors()]


def _explain(problem: Any, known: Callable[[Sequence[Any]], Sequence[str]], below: Sequence[str]) -> str:
    path = ".".join(map(str, [*below, *problem["loc"]]))
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(problem["loc"][-1], known(problem["loc"][:-1]))
        return f"unknown key '{path}' (value {problem['input']!r}): {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}={problem['input']!r}: {message}"
