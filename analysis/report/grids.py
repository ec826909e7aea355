"""Tables of text: what report.html and report.md both print as rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankdrift.analysis.observations import GENERAL_TEXT

MISSING = "–"  # noqa: RUF001 - an en dash is what a table shows where nothing was measured


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names its row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, without an exponent where that reads well.

    >>> number(0.01234), number(123456.0), number(0.0000123), number(float("nan"))
    ('0.0123', '123456', '1.23e-05', '–')
    """
    if value is None or value != value:
        return MISSING
    if value == 0 or abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"


def signed(value: float) -> str:
    """Return a change with its sign, to three significant digits."""
    return ("+" if value > 0 else "") + number(value)


def with_error(value: float | None, stderr: float | None) -> str:
    """Return ``value ± stderr``; the value alone where no standard error is known."""
    text = number(value)
    return text if text == MISSING or stderr is None or stderr != stderr else f"{text} ± {number(stderr, 2)}"


def percent(share: float) -> str:
    """Return a share in per cent, to three significant digits."""
    return f"{number(100 * share)} %"


def interval(low: float, high: float) -> str:
    """Return the ends of a 95 % interval; empty where there is none."""
    return f"[{number(low)}, {number(high)}]" if low == low and high == high else ""


def measured(task: str, metric: str) -> str:
    """Return what a sentence calls a score; of general text it is always the NLL.

    >>> measured("topic", "accuracy")
    'accuracy on topic'
    """
    return "NLL of general text (nats a token)" if task == GENERAL_TEXT else f"{metric} on {task}"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and their values as text; lists stay on one line.

    >>> flattened({"a": {"b": 1, "c": [2, 3]}, "d": None})
    {'a.b': '1', 'a.c': '2, 3', 'd': 'none'}
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _as_text(value)
    return flat


def _as_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return (
            " ".join(map(str, value))
            if any(isinstance(item, str) for item in value)
            else ", ".join(map(str, value))
        )
    return str(value)


def differing(trees: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return the settings that are not the same in all trees: a row a key, a column a tree."""
    flat = {name: flattened(tree) for name, tree in trees.items()}
    keys = _keys(flat)
    rows = [(key, *(tree.get(key, MISSING) for tree in flat.values())) for key in keys]
    return Grid(("setting", *flat), tuple(row for row in rows if len(set(row[1:])) > 1))


def shared(trees: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return the settings that all trees have alike: a row a key."""
    flat = {name: flattened(tree) for name, tree in trees.items()}
    values = {key: {tree.get(key, MISSING) for tree in flat.values()} for key in _keys(flat)}
    return Grid(
        ("setting", "value"), tuple((key, found.pop()) for key, found in values.items() if len(found) == 1)
    )


def _keys(flat: Mapping[str, Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for tree in flat.values() for key in tree))
