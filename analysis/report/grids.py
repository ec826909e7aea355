"""Tables of text: what report.html and report.md both print as rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rankdrift.analysis.formats import MISSING, filled, named_in

Columns = dict[str, dict[Any, str]]
"""Heading -> what a line is about -> text."""


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names its row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def columns_of(columns: Mapping[str, str], rows: pd.DataFrame, by: tuple[str, ...] = ("run",)) -> Columns:
    """Return the texts of a listing's columns (:class:`rankdrift.analysis.findings.Listing`).

    >>> rows = pd.DataFrame({"run": ["a", "a"], "task": ["x", "y"], "value": [0.5, 1.0]})
    >>> columns_of({"score on {task}": "{value:number 2}"}, rows)
    {'score on x': {('a',): '0.50'}, 'score on y': {('a',): '1.0'}}
    """
    texts: Columns = {}
    for heading, text in columns.items():
        for key, line in rows.groupby([*by, *named_in(heading)], sort=False):
            texts.setdefault(filled(heading, line), {})[key[: len(by)]] = filled(text, line)
    return texts


def grid_of(columns: Columns, caption: str = "") -> Grid:
    """Return the grid of these columns, its lines those of the first; empty columns are left out.

    >>> grid_of({"run": {1: "a", 2: "b"}, "p": {1: MISSING}, "n": {2: "3"}}).rows
    (('a', '–'), ('b', '3'))
    """
    keys = next(iter(columns.values()), {})
    shown = {heading: texts for heading, texts in columns.items() if set(texts.values()) - {MISSING}}
    lines = (tuple(texts.get(key, MISSING) for texts in shown.values()) for key in keys)
    return Grid(tuple(shown), tuple(lines), caption)


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
