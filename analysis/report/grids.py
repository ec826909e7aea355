"""Tables of text: what report.html and report.md both print as rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rankdrift.analysis.sources.observations import GENERAL_TEXT

MISSING = "–"  # noqa: RUF001 - an en dash is what a table shows where nothing was measured
ALPHA = 0.05
"""Level of every test whose verdict is stated."""
ROUNDING = 1e-12
"""Changes of scores below this are sums of scores that cancel."""


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names its row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def grid_of(records: Iterable[Mapping[str, str]], caption: str = "") -> Grid:
    """Return the grid of these rows, heading -> text; columns in order of appearance, empty ones left out.

    >>> grid_of([{"run": "a", "p": MISSING}, {"run": "b", "p": MISSING, "n": "3"}]).headers
    ('run', 'n')
    """
    rows = list(records)
    headers = list(dict.fromkeys(heading for row in rows for heading in row))
    shown = [heading for heading in headers if {row.get(heading, MISSING) for row in rows} - {MISSING}]
    cells = tuple(tuple(row.get(heading, MISSING) for heading in shown) for row in rows)
    return Grid(tuple(shown), cells, caption)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, without an exponent where that reads well.

    >>> number(0.01234), number(123456.0), number(0.0000123), number(float("nan"))
    ('0.0123', '123456', '1.23e-05', '–')
    """
    if value is None or value != value:
        return MISSING
    if value == 0:
        return "0"  # whatever its sign
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"


def count(value: float) -> str:
    """Return a number of things; a dash where it is undefined.

    >>> count(7.0), count(float("nan"))
    ('7', '–')
    """
    return MISSING if value != value else f"{value:.0f}"


def signed(value: float) -> str:
    """Return a change with its sign, to three significant digits; what only rounding left is 0.

    >>> signed(0.5), signed(-0.25), signed(-5.6e-17)
    ('+0.500', '-0.250', '0')
    """
    if abs(value) < ROUNDING:
        return number(0.0)
    return ("+" if value > 0 else "") + number(value)


def with_error(value: float | None, stderr: float | None, digits: int = 3) -> str:
    """Return ``value ± stderr``; the value alone where no standard error is known."""
    text = number(value, digits)
    return text if text == MISSING or stderr is None or stderr != stderr else f"{text} ± {number(stderr, 2)}"


def percent(share: float) -> str:
    """Return a share in per cent, to three significant digits."""
    return MISSING if share != share else f"{number(100 * share)} %"


def interval(low: float, high: float) -> str:
    """Return the ends of a 95 % interval; empty where there is none."""
    return f"[{number(low)}, {number(high)}]" if low == low and high == high else ""


def change(value: float, low: float, high: float, reason: str = "") -> str:
    """Return a change with its 95 % interval, or with the reason why there is none.

    >>> change(0.5, 0.25, 0.75), change(0.5, float("nan"), float("nan"), "one seed")
    ('+0.500 [0.250, 0.750]', '+0.500 (one seed)')
    """
    if value != value:
        return f"{MISSING} ({reason})" if reason else MISSING
    without = f"({reason or 'no interval'})"
    return f"{signed(value)} {interval(low, high) or without}"


def measured(task: str, metric: str, higher_is_better: bool = True) -> str:
    """Return what a score is called; of general text it is always the NLL, of which all know its direction.

    >>> measured("topic", "accuracy"), measured("mt", "ter", False)
    ('accuracy on topic', 'ter on mt (lower is better)')
    """
    if task == GENERAL_TEXT:
        return "NLL of general text (nats a token)"
    return f"{metric} on {task}" + ("" if higher_is_better else " (lower is better)")


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
    """Return the settings that are not the same in all trees: a row a tree, a column a setting."""
    flat = {name: flattened(tree) for name, tree in trees.items()}
    keys = [key for key in _keys(flat) if len({tree.get(key, MISSING) for tree in flat.values()}) > 1]
    if not keys:
        return Grid((), ())
    rows = ((name, *(tree.get(key, MISSING) for key in keys)) for name, tree in flat.items())
    return Grid(("run", *keys), tuple(rows))


def shared(trees: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return the settings that all trees have alike: a row a key."""
    flat = {name: flattened(tree) for name, tree in trees.items()}
    values = {key: {tree.get(key, MISSING) for tree in flat.values()} for key in _keys(flat)}
    return Grid(
        ("setting", "value"), tuple((key, found.pop()) for key, found in values.items() if len(found) == 1)
    )


def _keys(flat: Mapping[str, Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for tree in flat.values() for key in tree))
