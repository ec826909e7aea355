"""Grids: settings that take several values, so that an arm stands for several, or a study for several groups.

An axis is a dotted key with its values: a list, whose values name themselves (``method.rank: [4, 8]`` gives
``lora-r4`` and ``lora-r8``), or a mapping of names to values (``data: {similar: {tasks: [sst2, qqp]}}``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rankdrift.errors import UserError

SHORT = {"rank": "r", "learning_rate": "lr", "name": "", "tasks": "", "targets": ""}
"""What stands before a value in a name, of keys whose own name is longer than it need be."""
COMPARED = ("model", "data")
"""Sections that runs have in common to be compared: an axis of theirs makes groups, not arms."""
NO_AXES = {"seed": "list 'seeds'", "arm": "name 'arms'", "study": "write two recipes", "output": "give one"}
LENGTHS = ("steps", "epochs", "tokens")
"""Settings of which a later one takes the place of an earlier one, whatever its name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

Point = tuple[str, dict[str, Any]]
"""A name, and the settings it stands for."""


def is_of_group(key: str) -> bool:
    """Return whether an axis makes groups, within which runs are compared."""
    return key.split(".")[0] in COMPARED


def points(grid: Mapping[str, Any]) -> list[Point]:
    """Return every combination of the axes' values, by name, the last axis fastest; one, nameless, of none.

    Raises UserError for an axis that is none, or whose values have no names.
    """
    axes = [_axis(key, values) for key, values in grid.items()]
    found = [_together(several) for several in itertools.product(*axes)]
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"grid: two points have the name '{name}'; name the values: KEY: {{NAME: VALUE}}")
    return found


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with another one laid over it; another way to say how long a run is takes its place."""
    lengths = [key for key in LENGTHS if changes.get(key) is not None]
    result = {key: value for key, value in base.items() if not lengths or key not in LENGTHS}
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the tree in which a dotted key has a value."""
    for part in reversed(key.split(".")):
        value = {part: value}
    tree: dict[str, Any] = value
    return tree


def joined(names: Iterable[str]) -> str:
    """Return one name of several, empty ones left out."""
    return "-".join(name for name in names if name)


def require_name(name: str, what: str) -> str:
    """Return a name that can be a folder's; raise UserError where it cannot."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{what} '{name}': names are folders' names: letters, digits and . _ + -; "
            "of a grid name the values: KEY: {NAME: VALUE}"
        )
    return name


def _axis(key: str, values: Any) -> list[Point]:
    if remedy := NO_AXES.get(key.split(".")[0]):
        raise UserError(f"grid: '{key}' is no axis; {remedy}")
    if isinstance(values, dict):
        named = {str(name): value for name, value in values.items()}
    elif isinstance(values, list) and not any(isinstance(value, dict) for value in values):
        named = {_named(key, value): value for value in values}
        if len(named) < len(values):
            raise UserError(f"grid: '{key}' has a value twice: {values!r}; give each once")
    else:
        raise UserError(f"grid: '{key}' takes a list of values or a mapping {{NAME: VALUE}}, got {values!r}")
    if not named:
        raise UserError(f"grid: '{key}' has no values; give some, or leave it out")
    return [(require_name(name, f"grid: '{key}':"), nested(key, value)) for name, value in named.items()]


def _named(key: str, value: Any) -> str:
    last = key.split(".")[-1]
    short = SHORT.get(last, last)
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return short + (text.rstrip("/").split("/")[-1] if last == "name" else text)


def _together(several: Iterable[Point]) -> Point:
    found = list(several)
    tree: dict[str, Any] = {}
    for _, settings in found:
        tree = merged(tree, settings)
    return joined(name for name, _ in found), tree
